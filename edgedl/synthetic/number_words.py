"""Numbers, quantities and dates in words: English as it is read, French as in France before the reform of 1990."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable

Pair = tuple[str, str]
"""English and French."""

ENGLISH = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"},
    **{"twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"},
}
FRENCH = [
    *("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix"),
    *("onze", "douze", "treize", "quatorze", "quinze", "seize", "dix-sept", "dix-huit", "dix-neuf"),
]
FRENCH_TENS = ["vingt", "trente", "quarante", "cinquante", "soixante"]
MONTHS = {
    **{"January": "janvier", "February": "février", "March": "mars", "April": "avril"},
    **{"May": "mai", "June": "juin", "July": "juillet", "August": "août"},
    **{"September": "septembre", "October": "octobre", "November": "novembre", "December": "décembre"},
}
WEEKDAYS = {
    **{"Monday": "lundi", "Tuesday": "mardi", "Wednesday": "mercredi", "Thursday": "jeudi"},
    **{"Friday": "vendredi", "Saturday": "samedi", "Sunday": "dimanche"},
}
MASCULINE = {"book": "livre", "dog": "chien", "train": "train", "garden": "jardin", "day": "jour", "euro": "euro"}
FEMININE = {
    "apple": "pomme",
    "house": "maison",
    "table": "table",
    "letter": "lettre",
    "hour": "heure",
    "car": "voiture",
}


def in_english(number: int) -> str:
    """A number from 0 to 999,999 in words."""
    if number < 20:
        return ENGLISH[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return ENGLISH_TENS[tens - 2] + (f"-{ENGLISH[ones]}" if ones else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    many, rest = divmod(number, size)
    joined = "" if not rest else f" and {in_english(rest)}" if rest < 100 else f" {in_english(rest)}"
    return f"{in_english(many)} {name}{joined}"


def in_french(number: int, feminine: bool = False, ordinal: bool = False) -> str:
    """A number from 0 to 999,999 in words: as an `ordinal`, such as a year, or before "mille" without any plural."""
    if number < 20:
        return "une" if number == 1 and feminine else FRENCH[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        if tens in (7, 9):  # sixty and eighty are counted on to nineteen
            tens, ones = tens - 1, ones + 10
        name = "quatre-vingt" if tens == 8 else FRENCH_TENS[tens - 2]
        if not ones:
            return name + ("s" if tens == 8 and not ordinal else "")
        joint = " et " if ones in (1, 11) and tens < 8 else "-"
        return name + joint + in_french(ones, feminine)
    if number < 1000:
        many, rest = divmod(number, 100)
        name = "cent" if many == 1 else f"{FRENCH[many]} cent"
        if not rest:
            return name + ("s" if many > 1 and not ordinal else "")
        return f"{name} {in_french(rest, feminine, ordinal)}"
    many, rest = divmod(number, 1000)
    name = "mille" if many == 1 else f"{in_french(many, ordinal=True)} mille"
    return f"{name} {in_french(rest, feminine, ordinal)}" if rest else name


def nth(number: int) -> str:
    """An English ordinal from 1 to 31."""
    begin, _, last = in_english(number).rpartition("-")
    return (f"{begin}-" if begin else "") + ORDINALS.get(last, f"{last}th")


def english_year(year: int) -> str:
    """A year from 1001 to 2099 as it is read."""
    hundreds, rest = divmod(year, 100)
    if hundreds == 20:
        return in_english(year)
    if hundreds == 10 or not rest:
        return in_english(year) if hundreds == 10 else f"{in_english(hundreds)} hundred"
    return f"{in_english(hundreds)} {'oh ' if rest < 10 else ''}{in_english(rest)}"


def number_pair(draw: random.Random) -> Pair:
    """A number, in English and in French; smaller ones as often as larger ones."""
    number = draw.randrange(10 ** draw.randint(1, 6))
    return in_english(number), in_french(number)


def quantity_pair(draw: random.Random) -> Pair:
    """From 1 to 999 things."""
    number, feminine = draw.randrange(1, 10 ** draw.randint(1, 3)), draw.random() < 0.5
    thing, chose = draw.choice(sorted((FEMININE if feminine else MASCULINE).items()))
    plural = "s" if number > 1 else ""
    return f"{in_english(number)} {thing}{plural}", f"{in_french(number, feminine)} {chose}{plural}"


def date_pair(draw: random.Random) -> Pair:
    """A date of the years 1700 to 2050, the year in words or in digits, with the day of the week or without."""
    date = datetime.date(1700, 1, 1) + datetime.timedelta(draw.randrange(128_000))
    month, mois = list(MONTHS.items())[date.month - 1]
    weekday, jour = list(WEEKDAYS.items())[date.weekday()]
    year = str(date.year) if draw.random() < 0.5 else english_year(date.year)
    day = "premier" if date.day == 1 else in_french(date.day)
    written = f"the {nth(date.day)} of {month} {year}"
    if draw.random() < 0.5:
        weekday, jour = f"{weekday} ", f"{jour} "
    else:
        weekday, jour = "", ""
    return f"{weekday}{written}", f"le {jour}{day} {mois} {in_french(date.year, ordinal=True)}"


PAIRS: tuple[Callable[[random.Random], Pair], ...] = (number_pair, quantity_pair, date_pair)
