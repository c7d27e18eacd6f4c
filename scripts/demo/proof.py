"""Count from outside what was lost or done twice: the courier's ledger, the invoices and their PDFs."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shop import Shop

COMPARED = 3
"""Number of invoices that are rendered again and compared pixel by pixel."""


@dataclass
class Proof:
    """The counts, and a sentence for every error."""

    lost: int = 0
    doubled: int = 0
    accepted: int = 0
    calls: int = 0
    most_calls: int = 0
    most_keys: int = 0
    invoices: int = 0
    attachments: int = 0
    pixels_equal: int = 0
    wrong: list[str] = field(default_factory=list)


def prove(shop: Shop, orders: list[int]) -> Proof:
    """Check that each of these orders has one accepted shipment, one posted invoice and one PDF."""
    proof = Proof()
    rows: list[tuple[Any, ...]] = shop.look.execute(
        """SELECT o.name, array_agg(DISTINCT m.id) FILTER (WHERE m.state = 'posted'),
                  count(DISTINCT a.id) FILTER (WHERE a.mimetype = 'application/pdf' AND a.res_field IS NULL)
           FROM sale_order o
           LEFT JOIN account_move m ON m.invoice_origin = o.name AND m.move_type = 'out_invoice'
           LEFT JOIN ir_attachment a ON a.res_model = 'account.move' AND a.res_id = m.id
           WHERE o.id = ANY(%s) GROUP BY o.id""",
        [orders],
    ).fetchall()
    ledger = shop.calls()
    accepted = Counter(line["order"] for line in ledger if line["result"] == "accepted")
    calls = Counter(line["order"] for line in ledger if line["result"] == "called")
    keys: dict[str, set[str]] = {}
    for line in ledger:
        keys.setdefault(line["order"], set()).add(line["key"])
    for name, invoices, attachments in rows:
        found = {"shipment": accepted[name], "invoice": len(invoices or []), "PDF": attachments}
        for what, count in found.items():
            proof.lost += count == 0
            proof.doubled += max(0, count - 1)
            if count != 1:
                proof.wrong.append(f"order {name}: {count} times {what}")
        proof.accepted += accepted[name]
        proof.invoices += len(invoices or [])
        proof.attachments += attachments
        proof.calls += calls[name]
        proof.most_calls = max(proof.most_calls, calls[name])
        proof.most_keys = max(proof.most_keys, len(keys.get(name, ())))
        if len(keys.get(name, ())) > 1:
            proof.wrong.append(f"order {name}: its calls had {len(keys[name])} idempotency keys")
    with_invoice = [(name, invoices[0]) for name, invoices, _ in rows if invoices]
    for name, invoice in with_invoice[:COMPARED]:
        if _same_pixels(shop, invoice):
            proof.pixels_equal += 1
        else:
            proof.wrong.append(f"order {name}: its PDF differs from the same invoice rendered again")
    return proof


def _same_pixels(shop: Shop, invoice: int) -> bool:
    [kept] = shop.user.call(
        "ir.attachment",
        "search_read",
        [["res_model", "=", "account.move"], ["res_id", "=", invoice], ["mimetype", "=", "application/pdf"]],
        fields=["datas"],
        limit=1,
    )
    again = shop.user.call("account.move", "render_again", [invoice])
    return _pixels(base64.b64decode(kept["datas"])) == _pixels(base64.b64decode(again))


def _pixels(pdf: bytes) -> list[str]:
    """Return a digest of each page as pdftoppm paints it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["pdftoppm", "-r", "72", "-png", "-", f"{folder}/page"], input=pdf, check=True)
        return [hashlib.sha256(page.read_bytes()).hexdigest() for page in sorted(Path(folder).glob("page*"))]
