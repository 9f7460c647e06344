"""Personal data in a text, by its form: addresses, numbers with a checksum, links that carry somebody's data. Pure functions.

Names and street addresses have no form that rules could know: they are not found. Why not a recogniser that is trained, and how
much is found: docs/decisions/intake.md.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import phonenumbers

PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "AU")  # whose numbers are known without a country code
MAX_TRIES = 2000  # of what may be a number, in each region: a table of 100,000 figures is not worth seconds


class Found(NamedTuple):
    """Something personal: what it is, and where (characters, end excluded)."""

    kind: str
    start: int
    end: int


def find(text: str) -> list[Found]:
    """All that is found, in order; where two overlap, the one that begins first, then the longer."""
    found = sorted((each for look in FINDERS for each in look(text)), key=lambda each: (each.start, -each.end))
    kept: list[Found] = []
    for each in found:
        if not kept or each.start >= kept[-1].end:
            kept.append(each)
    return kept


# ---- e-mail ---------------------------------------------------------------------------------------------------------

EMAIL = re.compile(r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
AT, DOT = r"\s?[\[({<]\s?at\s?[\])}>]\s?", r"\s?(?:\.|[\[({<]\s?dot\s?[\])}>])\s?"
EMAIL_IN_WORDS = re.compile(rf"(?<![\w.+-])[\w.+-]{{1,64}}{AT}[\w-]{{1,63}}(?:{DOT}[\w-]{{2,63}}){{1,5}}", re.I)


def _emails(text: str) -> Iterator[Found]:
    if "@" in text:
        yield from (Found("email", *match.span()) for match in EMAIL.finditer(text))
    yield from (Found("email", *match.span()) for match in EMAIL_IN_WORDS.finditer(text))


# ---- numbers --------------------------------------------------------------------------------------------------------

MANY_DIGITS = re.compile(r"\d(?:[\s().\-/\u00a0]{0,3}\d){6}")
NORTH_AMERICAN = re.compile(r"(?<![\w.-])(?:\+?1[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-]|\.\d)")
PHONE_WORD = re.compile(r"phone|call|tel|mobile|cell|text me|sms|whatsapp|fax|number is|reach", re.I)
SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")
SSN_IN_WORDS = re.compile(
    r"\b(?:ssn|social security)\b\D{0,20}((?!000|666|9\d\d)\d{3}[ -]?(?!00)\d\d[ -]?(?!0000)\d{4})(?![\w-])", re.I
)
CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
ISSUERS = re.compile(r"4|5[0678]|5[1-5]|2[2-7]|3[0-9]|6")  # of payment cards
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d\d(?:[ -]?[A-Za-z0-9]){11,30}")
IBAN_LENGTHS_TEXT = """
AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BI:27 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DJ:27 DK:18
DO:28 EE:20 EG:29 ES:24 FI:18 FK:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HN:28 HR:21 HU:28 IE:22 IL:23
IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27 MD:24 ME:22 MK:19 MN:20 MR:27
MT:31 MU:30 NI:28 NL:18 NO:15 OM:23 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 RU:33 SA:24 SC:31 SD:18 SE:24 SI:19
SK:24 SM:27 SO:23 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20 YE:30
"""
IBAN_LENGTHS = {each[:2]: int(each[3:]) for each in IBAN_LENGTHS_TEXT.split()}


def _phones(text: str) -> Iterator[Found]:
    if not MANY_DIGITS.search(text):
        return
    yield from (Found("phone", *match.span()) for match in NORTH_AMERICAN.finditer(text))
    for region in PHONE_REGIONS:
        for match in phonenumbers.PhoneNumberMatcher(text, region, phonenumbers.Leniency.VALID, MAX_TRIES):
            # Without a code in front, any other number may look so: then a word beside it must speak of calling.
            said = match.raw_string
            has_code = said.startswith(("+", "0", "(")) and not said.isdigit()
            if text[max(0, match.start - 1) : match.start] in (",", "."):
                continue  # the end of a longer figure
            if has_code or PHONE_WORD.search(text, max(0, match.start - 40), match.start):
                yield Found("phone", match.start, match.end)


def _social_security_numbers(text: str) -> Iterator[Found]:
    yield from (Found("ssn", *match.span()) for match in SSN.finditer(text))
    yield from (Found("ssn", *match.span(1)) for match in SSN_IN_WORDS.finditer(text))


def _cards(text: str) -> Iterator[Found]:
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if ISSUERS.match(digits) and len(set(digits)) > 1 and passes_luhn(digits):
            yield Found("credit_card", *match.span())


def passes_luhn(digits: str) -> bool:
    """True if the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _ibans(text: str) -> Iterator[Found]:
    for match in IBAN.finditer(text):
        length, end, count = IBAN_LENGTHS.get(match[0][:2].upper(), 0), 0, 0
        for place, char in enumerate(match[0]):  # words behind it may have matched too
            count += char.isalnum()
            if count == length:
                end = place + 1
                break
        is_whole = end and not match.string[match.start() + end : match.start() + end + 1].isalnum()
        if is_whole and passes_mod_97(re.sub(r"[ -]", "", match[0][:end])):
            yield Found("iban", match.start(), match.start() + end)


def passes_mod_97(iban: str) -> bool:
    """True if the check digits fit (ISO 7064, MOD 97-10)."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


# ---- machines and links ----------------------------------------------------------------------------------------------

IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![:\w.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![:\w])")
VERSION_WORD = re.compile(r"(?:version|release|build|firmware|chapter|section|\bv)[\s:.]*$", re.I)
LINK = re.compile(r"(?i)\b(?:https?|ftp)://[^\s<>\"'\])}]{3,2000}")
PERSONAL_NAMES = """
email mail e-mail user username user_name userid user_id uid login account accountid account_id customer customer_id token
access_token id_token refresh_token auth authtoken session sessionid session_id sid phpsessid jsessionid password passwd pwd pass
phone mobile tel name fullname firstname first_name lastname last_name surname address dob birthday ssn api_key apikey secret
signature sig
"""
PERSONAL_PARAMETERS = frozenset(PERSONAL_NAMES.split())
PROFILE = re.compile(
    r"(?i)(?:^|\.)(?:linkedin\.com/in/|facebook\.com/(?!(?:groups|events|pages|help|sharer|watch|login)\b)[\w.]{3,}"
    r"|instagram\.com/(?!p/|explore|reel)[\w.]{2,}|(?:twitter|x)\.com/(?!search|hashtag|i/|home|intent)\w{2,}"
    r"|reddit\.com/u(?:ser)?/|t\.me/\w)"
)
SECRET = re.compile(
    r"(?<![\w-])(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|AIza[\w-]{35}|heedgw_[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?![\w-])"
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
)


def _machines(text: str) -> Iterator[Found]:
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            nobodys = (
                address.is_loopback or address.is_unspecified or address.is_multicast or match[0].startswith("255.")
            )
            if (
                not nobodys
                and len(match[0]) > 6
                and not VERSION_WORD.search(text, max(0, match.start() - 12), match.start())
            ):
                yield Found("ip_address", *match.span())


def _links(text: str) -> Iterator[Found]:
    if "://" not in text:
        return
    for match in LINK.finditer(text):
        link = match[0].rstrip(".,;:!?")
        if _is_somebodys(link):
            yield Found("link", match.start(), match.start() + len(link))


def _is_somebodys(link: str) -> bool:
    try:
        parts = urlsplit(link)
        given = {*parse_qsl(parts.query), *parse_qsl(parts.fragment)}
    except ValueError:
        return False
    named = any(name.lower() in PERSONAL_PARAMETERS and value for name, value in given)
    return "@" in parts.netloc or named or bool(PROFILE.search(parts.netloc + parts.path))


def _secrets(text: str) -> Iterator[Found]:
    yield from (Found("secret", *match.span()) for match in SECRET.finditer(text))


FINDERS: tuple[Callable[[str], Iterator[Found]], ...] = (
    _emails, _social_security_numbers, _cards, _phones, _ibans, _machines, _links, _secrets,
)  # fmt: skip
