"""Titles of films that nobody made: an adjective that tells the genre, and a noun that tells nothing."""

GENRES: dict[str, tuple[str, ...]] = {
    genre: tuple(words.split())
    for genre, words in {
        "horror": "Haunted Cursed Ghostly Bloody Creepy Gloomy Sinister Rotting",
        "space": "Cosmic Lunar Stellar Martian Galactic Orbital Robotic Alien",
        "romance": "Tender Loving Romantic Charming Sweet Dreamy Gentle Passionate",
        "western": "Dusty Outlaw Frontier Cowboy Desert Prairie Wild Rugged",
        "crime": "Stolen Hidden Criminal Guilty Secret Forged Missing Crooked",
        "comedy": "Funny Silly Clumsy Merry Goofy Cheeky Jolly Wacky",
    }.items()
}
WORDS = (
    "Castle Harbour Garden Train Mirror Letter Island Bakery Tower River Clock Forest Piano Hotel Bridge Window Circus "
    "Lantern Mountain Library Kitchen Orchard Tunnel Market"
)
NOUNS = tuple(WORDS.split())
TITLES: dict[str, tuple[str, ...]] = {
    genre: tuple(f"{adjective} {noun}" for adjective in adjectives for noun in NOUNS)
    for genre, adjectives in GENRES.items()
}
