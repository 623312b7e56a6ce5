"""Rows on which tokenizers are tried when a model is added."""

SAMPLES: dict[str, str] = {
    "Latin": "The patient was seen on Monday and sent home with two new prescriptions.",
    "Latin with accents": "Où est l'été? Größe, mañana, šťáva, żółć, İstanbul, Øre.",
    "Greek": "Ο ασθενής επέστρεψε στο σπίτι του την Τρίτη.",
    "Cyrillic": "Пациент вернулся домой во вторник и чувствует себя лучше.",
    "Chinese": "病人星期二回家了,感觉好多了。",
    "Japanese": "患者は火曜日に家に帰りました。ありがとうございます。",
    "Korean": "환자는 화요일에 집으로 돌아갔습니다.",
    "Arabic": "عاد المريض إلى منزله يوم الثلاثاء وهو بخير.",
    "Hebrew": "המטופל חזר הביתה ביום שלישי.",
    "Devanagari": "मरीज मंगलवार को घर लौट आया और अब ठीक है।",
    "Thai": "ผู้ป่วยกลับบ้านในวันอังคาร",
    "numbers": "0 1 2.50 1,234,567 2026-11-25 +49 30 123456 50% 3/4",
    "emoji": "😀 👩‍👩‍👧‍👦 🇪🇺 ❤️ 👍🏽 ✨",
    "code": 'def f(x: int) -> str:\n\treturn f"{x!r}" if x else \'\' # {[()]} <a href="/">',
}
"""One text of each script."""

ODD: tuple[str, ...] = (
    *(unit * 400 for unit in ("a", "A", "ab", "1", " ", "\n", "\t", "-", ".", "a ", "1,", "'s", "\u00e9", "\u0301", "字", "😀")),
    *(unit * 400 + "!" for unit in ("a", "aA", "1", " ", "x1", "_", "/", "\\")),
    "a\0b\u200b\u202e\ufeffc\u2028d",
    "https://example.org/" + "path/" * 60 + "?" + "a=b&" * 60,
)
"""Texts over which a careless regular expression thinks for years."""
