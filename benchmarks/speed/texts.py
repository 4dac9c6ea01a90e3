"""Texts that the benchmarks decode, as random weights give none that repeat their prompt."""

from __future__ import annotations

import json
from typing import Any

INVOICE = """\
Harrow & Finch Instruments Ltd, 14 Quayside, Bristol BS1 4RP
Invoice HF-20418, issued 12 March 2025, due 11 April 2025
Customer: Lindqvist Marine Research, Skeppsbron 8, 111 30 Stockholm
Order reference: LMR-7731
2 x Conductivity sensor CS-40 at 318.50 each, 637.00
1 x Pressure housing, titanium, 6000 m at 2,140.00 each, 2140.00
12 x O-ring set, nitrile at 4.25 each, 51.00
Subtotal 2828.00, VAT at 20% 565.60, total 3393.60 EUR
Payment by bank transfer to GB29 NWBK 6016 1331 9268 19. Goods remain ours until they are paid.
"""

_ITEM = {
    "type": "object",
    "properties": {
        "description": {"type": "string"},
        "quantity": {"type": "integer"},
        "unit_price": {"type": "number"},
    },
    "required": ["description", "quantity", "unit_price"],
    "additionalProperties": False,
}
INVOICE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "invoice_number": {"type": "string"},
        "issue_date": {"type": "string"},
        "customer": {"type": "string"},
        "items": {"type": "array", "items": _ITEM},
        "total": {"type": "number"},
        "currency": {"enum": ["EUR", "GBP", "USD"]},
    },
    "required": ["invoice_number", "issue_date", "customer", "items", "total", "currency"],
    "additionalProperties": False,
}
INVOICE_JSON = json.dumps(
    {
        "invoice_number": "HF-20418",
        "issue_date": "12 March 2025",
        "customer": "Lindqvist Marine Research",
        "items": [
            {"description": "Conductivity sensor CS-40", "quantity": 2, "unit_price": 318.5},
            {
                "description": "Pressure housing, titanium, 6000 m",
                "quantity": 1,
                "unit_price": 2140,
            },
            {"description": "O-ring set, nitrile", "quantity": 12, "unit_price": 4.25},
        ],
        "total": 3393.6,
        "currency": "EUR",
    }
)

# What is asked, the schema, and the answer.
READING = (f"{INVOICE}\nWrite down what is printed.", None, INVOICE)
EXTRACTION = (f"{INVOICE}\nGive the invoice as JSON.", INVOICE_SCHEMA, INVOICE_JSON)
