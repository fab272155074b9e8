"""A real headless browser: Debian's Chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser, ended on leaving."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Watched:
    """A page that was opened, what it asked for and what it complained about."""

    def __init__(self, chromium: Browser, path: Path, *, width: int, dark: bool = False) -> None:
        self.page: Page = chromium.new_page(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            is_mobile=width < 500,
        )
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.requests.remove(path.as_uri())

    @property
    def width(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth")


@contextmanager
def opened(chromium: Browser, path: Path, *, width: int = 1280, dark: bool = False) -> Iterator[Watched]:
    """The page at `path` in a window of `width` CSS pixels; closed on leaving."""
    watched = Watched(chromium, path, width=width, dark=dark)
    try:
        yield watched
    finally:
        watched.page.close()
