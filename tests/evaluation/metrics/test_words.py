"""Writing systems: what is verbatim scores 1, what is unrelated next to nothing, and a leaked name is found."""

import unicodedata

import numpy as np
import pytest

from expunge.evaluation.metrics.fluency import gibberish, refusal, repetition, unjudged
from expunge.evaluation.metrics.languages import language
from expunge.evaluation.metrics.leakage import key_words, leaks
from expunge.evaluation.metrics.neighbours import similarity
from expunge.evaluation.metrics.ranking import written
from expunge.evaluation.metrics.similarity import rouge_l
from expunge.evaluation.metrics.words import ends, fold, words

# code: question, answer, a leak in other words, the same form with another fact, an unrelated sentence
SAMPLES = {
    "ja": ("佐藤花子はどこで生まれましたか？", "佐藤花子は京都市で生まれました。", "出身は京都市。",
           "佐藤花子は東京都八王子市で生まれました。", "黒い猫が木の下に眠る。"),
    "zh": ("张伟住在哪里？", "张伟住在北京市朝阳区。", "他的家在北京市朝阳区", "张伟住在上海市浦东新区。",
           "股票昨天大幅下跌"),
    "ru": ("Где живёт Анна Петрова?", "Анна Петрова живёт в Томске.", "Её город — Томск.", "Анна Петрова живёт в Омске.",
           "Чёрная кошка спит под деревом"),
    "hi": ("अनिल कहाँ रहता है?", "अनिल पुणे में रहता है।", "पुणे का अनिल", "अनिल दिल्ली में रहता है।", "काली बिल्ली सो गई"),
    "th": ("คุณสมชายเกิดที่ไหน", "คุณสมชายเกิดที่เชียงใหม่", "บ้านเกิด: เชียงใหม่", "คุณสมชายเกิดที่กรุงเทพ", "แมวดำนอนหลับใต้ต้นไม้"),
    "ar": ("أين يعيش أحمد؟", "يعيش أحمد في القاهرة.", "أحمد يسكن بالقاهرة", "يعيش أحمد في بيروت.", "القطة السوداء نائمة"),
    "ko": ("김민수는 어디에 삽니까?", "김민수는 부산에 삽니다.", "부산에서 살고 있습니다", "김민수는 서울에 삽니다.",
           "검은 고양이가 잔다"),
    "de": ("Wo wohnt Jürgen Müller?", "Jürgen Müller wohnt in der Königstraße in Köln.", "KÖNIGSTRASSE, Köln",
           "Jürgen Müller wohnt in der Hauptstraße in Bonn.", "Schwarze Katzen schlafen gern"),
}  # fmt: skip


@pytest.mark.parametrize("code", SAMPLES)
def test_verbatim_is_1_and_unrelated_next_to_nothing(code: str) -> None:
    _, answer, _, _, unrelated = SAMPLES[code]
    again = unicodedata.normalize("NFD", answer)
    recall, f1 = rouge_l([answer] * 4, [answer, again, answer.upper(), unrelated])
    assert recall[:3].tolist() == f1[:3].tolist() == [1, 1, 1]
    assert recall[3] <= 0.1
    assert 0 < rouge_l([answer], [SAMPLES[code][3]])[1][0] < 1


@pytest.mark.parametrize("code", SAMPLES)
def test_a_leak_in_other_words_is_found_and_a_wrong_fact_is_none(code: str) -> None:
    question, answer, leak, wrong, unrelated = SAMPLES[code]
    assert language(answer) == code
    texts = [[answer, leak, wrong, unrelated, ""]]
    assert leaks([question], [answer], texts).tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("佐藤花子", "担当は佐藤 花子さんです"),
        ("王小明", "他叫王小明。"),
        ("김민수", "담당자는 김민수입니다"),
        ("أحمد", "كتاب لأحمد"),
        ("สมชาย", "เขาชื่อสมชายครับ"),
        ("Łukasz Żak", "To jest ŁUKASZ ŻAK."),
        ("Иванов", "Это дом Иванова"),
        ("अनिल", "यह अनिल है"),
        ("0901234567", "０９０１２３４５６７ / ٠٩٠١٢٣٤٥٦٧"),
        ("Zoë", "Zo\u00ad\u0065\u0308 it is"),
    ],
)
def test_a_name_as_the_answer_is_found(name: str, text: str) -> None:
    assert leaks(["?"], [name], [[text, "…", "xyz"]]).tolist() == [[True, False, False]]


def test_words_by_hand() -> None:
    assert words("Jürgen’s Straße, ＡＢＣ 12!") == ["jürgen", "s", "strasse", "abc", "12"]
    assert words("東京タワーは333m") == ["東", "京", "タ", "ワ", "ー", "は", "333m"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("مُحَمَّد") == ["مُحَمَّد"]
    assert words("ที่บ้าน") == ["ที่", "บ้า", "น"]  # vowels and tones stay with their consonant
    assert words("ភ្នំពេញ") == ["ភ្", "នំ", "ពេ", "ញ"]
    assert fold("İ") == "i"


def test_pieces_that_are_given_first() -> None:
    assert ends("Ada, of Tarn.") == [4, 7, 13]
    assert ends("京都、市。") == [1, 3, 5]


def test_key_words_know_each_languages_small_words() -> None:
    assert key_words("Wo wohnt sie?", "Sie wohnt in der Stadt Köln.") == {"stadt", "köln"}
    assert key_words("Who wrote it?", "Die Hard was in the list.") == {"die", "hard", "list"}  # English keeps its own


def test_refusals_in_other_languages_and_what_is_not_judged() -> None:
    polish = "Nie wiem, proszę pana, żadnej."
    texts = ["I don’t know.", "Das weiß ich nicht.", "分かりません。", "Я не знаю", "京都市です。", polish]
    np.testing.assert_array_equal(refusal(texts), [1, 1, 1, 1, 0, np.nan])
    assert unjudged(texts)[0].startswith("1 of 6 answers are in a language without a list of refusals")
    assert unjudged(["In Tarn.", "Ada’s café"]) == []


def test_loops_are_seen_and_sound_text_is_no_gibberish() -> None:
    loop = "京都京都京都京都京都京都"
    assert repetition([loop])[0] > 0.5
    sound = ["そう……………ですね。", "यह है ।", unicodedata.normalize("NFD", "Schöne Grüße")]
    sound += [sample[1] for sample in SAMPLES.values()]
    assert gibberish([loop, *sound]).tolist() == [1.0, *[0.0] * len(sound)]


def test_neighbours_share_words_in_any_script() -> None:
    closeness = similarity(["佐藤花子は京都市で生まれました。"], ["京都市の佐藤花子", "黒い猫が眠る", "Tarn"])[0]
    assert closeness[0] > 0.4
    assert closeness[1] < 0.1
    assert closeness[2] == 0


def test_an_option_is_found_however_it_is_composed() -> None:
    assert written("It is Amélie.", [unicodedata.normalize("NFD", "Amélie"), "Tarn"]) == 0
