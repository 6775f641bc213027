"""Numbers of payment cards and bank accounts, by the checks that are built into them."""

from __future__ import annotations

import re

# ISO 13616's registry: characters of an account's number, by country
_BY_LENGTH = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
}
IBAN_LENGTHS = {country: length for length, countries in _BY_LENGTH.items() for country in countries.split()}
"""Number of characters, by the code of the country."""

# Visa; Mastercard; American Express; Discover and UnionPay; Diners; JCB
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15})|(?:5[1-5]\d\d|2[2-7]\d\d)\d{12}|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d|2\d\d)\d{12}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}"
)


def is_card(digits: str) -> bool:
    """Whether digits begin as the cards of some issuer do, and Luhn's check holds (ISO 7812)."""
    if not _ISSUERS.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(each - 9 * (each > 9) for each in doubled)) % 10 == 0


def is_iban(account: str) -> bool:
    """Whether an account's number, without spaces, is as long as its country has them, and its check digits fit."""
    if IBAN_LENGTHS.get(account[:2]) != len(account) or not account.isascii() or not account.isalnum():
        return False
    return int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1
