"""Run ``make demo``: ship and invoice real sale orders in the background while a second user works.

1. Odoo idle (half of it at the end), and Odoo's own Confirm.
2. Confirm with the courier's call and the invoice's PDF inline, as without a job queue.
3. Confirm with Sidestream, while a child is killed in the middle of a job and Redis is emptied with FLUSHALL.

The last line is one JSON object; this run measured every figure in it. With HOLD=no the demo then ends;
otherwise it continues until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

from proof import Proof, prove
from rich.console import Console
from rich.table import Table
from screens import OdooError, Sample, p95
from shop import Shop, median, wait_until

from tests.support.server_process import ServerFailed

ORDERS = 10
SAMPLES = 200
IDLE_SAMPLES = 120
"""Taken before the other arms and again after them, because the speed of a shared machine varies."""
THINKS = 0.5
"""Seconds between two orders of the user."""
SPARE = 40
"""Extra quotations, confirmed until there are enough samples."""
UNLUCKY = 6
"""Consecutive failures of Confirm after which the demo stops."""
PATIENCE = 300.0
"""Longest time in seconds until there are enough samples while jobs run."""
console = Console(highlight=False)


def confirm_each(shop: Shop, orders: list[int]) -> list[float]:
    """Confirm the orders one by one as a person does; return how long each took."""
    took = []
    for order in orders:
        took.append(shop.confirm(order))
        time.sleep(THINKS)
    return took


def idle_screen(shop: Shop) -> list[Sample]:
    """Arm 1: measure the stock screen alone."""
    screen = shop.stock_screen()
    wanted = "the stock screen was opened often enough"
    wait_until(wanted, lambda: len(screen.samples) >= IDLE_SAMPLES or screen.error is not None)
    return screen.stop()


def confirm_only(shop: Shop) -> list[float]:
    """Arm 1: confirm quotations with Odoo's own Confirm, while the stock screen is opened."""
    orders = shop.quotations(ORDERS)
    screen = shop.stock_screen()
    took = confirm_each(shop, orders)
    screen.stop()
    return took


def inline(shop: Shop) -> tuple[list[float], list[Sample]]:
    """Arm 2: do everything in the user's request, until the screen was opened often enough."""
    shop.mode("inline")
    orders = shop.quotations(ORDERS)
    screen = shop.stock_screen()
    spans: list[tuple[float, float]] = []
    failed = 0

    def during() -> list[Sample]:
        return [s for s in screen.samples if any(a <= s.began and s.ended <= b for a, b in spans)]

    while orders or (len(during()) < SAMPLES and screen.error is None):
        order = orders.pop(0) if orders else shop.quotations(1)[0]
        began = time.time()
        try:
            shop.confirm(order)
        except OdooError as error:  # here the user sees the courier's errors
            console.print(f"   the user of order {order} gets an error instead of a confirmation: {str(error)[:90]}")
            failed += 1
            if failed == UNLUCKY:
                sys.exit(f"Confirm failed {failed} times in a row, so something is wrong with this machine: {error}")
            continue
        failed = 0
        spans.append((began, time.time()))
    screen.stop()
    return [b - a for a, b in spans], during()


def background(shop: Shop) -> tuple[list[float], list[Sample], list[int], float]:
    """Arm 3: use Sidestream, kill a child and empty Redis; add jobs until there are enough samples."""
    shop.mode("background")
    orders = shop.quotations(ORDERS)
    # Created before the measurement, which is about jobs and not about creating quotations.
    spare = shop.quotations(SPARE)
    screen = shop.stock_screen()
    took = confirm_each(shop, orders)
    console.print("   killing a child in the middle of a job ...")
    rerun = shop.kill_a_child()
    console.print("   emptying Redis with FLUSHALL ...")
    shop.empty_redis()
    deadline = time.monotonic() + PATIENCE
    while sum(sample.busy for sample in screen.samples) < SAMPLES and screen.error is None:
        shop.check_worker()
        if time.monotonic() > deadline:
            sys.exit(f"Jobs did not run often enough within {PATIENCE:g} s while the stock screen was opened.")
        if shop.pending_jobs() < 4:
            if len(spare) < 2:
                console.print("   creating more quotations, which slows the stock screen down ...")
                spare += shop.quotations(ORDERS)
            more = [spare.pop() for _ in range(2)]
            confirm_each(shop, more)
            orders += more
        time.sleep(0.1)
    wait_until("every job is done", lambda: shop.pending_jobs() == 0, 240)
    samples = screen.stop()
    return took, [sample for sample in samples if sample.busy], orders, rerun


def table(figures: dict[str, float], proof: Proof, samples: dict[str, int]) -> Table:
    """Return the table of the results."""
    shown = Table(title="Confirm a quotation: ship it, invoice it")
    for column in ("", "without shipping and invoicing", "all of it in the user's request", "with Sidestream"):
        shown.add_column(column)
    shown.add_row(
        "the user waits for Confirm (median of ten)",
        f"{figures['confirm_only_s']:.2f} s",
        f"{figures['inline_s']:.2f} s",
        f"{figures['background_s']:.2f} s",
    )
    shown.add_row(
        "a colleague opens the stock screen (p95; first column: idle)",
        f"{figures['stock_p95_idle_ms']:.0f} ms",
        f"{figures['stock_p95_inline_ms']:.0f} ms",
        f"{figures['stock_p95_background_ms']:.0f} ms",
    )
    shown.add_row("times the screen was opened", *(str(samples[name]) for name in ("idle", "inline", "background")))
    shown.add_row("jobs done", "", "", str(int(figures["jobs_done"])))
    shown.add_row("a killed child's job ran again after", "", "", f"{figures['killed_rerun_s']:.2f} s")
    shown.add_row("lost / done twice", "", "", f"{int(figures['lost'])} / {int(figures['doubled'])}")
    shown.caption = (
        f"{proof.accepted} shipments accepted in {proof.calls} calls (at most {proof.most_calls} an order, "
        f"{proof.most_keys} key), {proof.invoices} invoices, {proof.attachments} PDFs, "
        f"{proof.pixels_equal} compared pixel by pixel; the user waits "
        f"{figures['background_s'] / figures['confirm_only_s']:.2f} x as long as for Odoo's own Confirm, "
        f"{figures['background_s'] / figures['inline_s']:.3f} x as long as inline"
    )
    return shown


def run(shop: Shop) -> tuple[dict[str, float], bool]:
    """Run the three arms, print the table, and return the figures and whether everything was right."""
    console.print("1. Idle, and Odoo's own Confirm ...")
    shop.mode("off")
    idle = idle_screen(shop)
    confirmed = confirm_only(shop)
    console.print("2. Ten orders with everything inline ...")
    inline_took, inline_samples = inline(shop)
    console.print("3. Ten orders with Sidestream ...")
    took, samples, orders, rerun = background(shop)
    console.print("1. Idle once more ...")
    later = idle_screen(shop)
    console.print("Counting from outside ...")
    proof = prove(shop, orders)
    figures = {
        "orders": len(orders),
        "confirm_only_s": median(confirmed),
        "inline_s": median(inline_took[:ORDERS]),
        "background_s": median(took),
        # The mean of both, because one p95 over both would be that of the slower half.
        "stock_p95_idle_ms": round((p95(idle) + p95(later)) / 2, 1),
        "stock_p95_inline_ms": round(p95(inline_samples), 1),
        "stock_p95_background_ms": round(p95(samples), 1),
        "jobs_done": shop.number("SELECT count(*) FROM sidestream_job WHERE state = 'done'"),
        "lost": proof.lost,
        "doubled": proof.doubled,
        "killed_rerun_s": round(rerun, 3),
        "setup_s": 0.0,
        "total_s": 0.0,
    }
    console.print(
        table(
            figures, proof, {"idle": len(idle) + len(later), "inline": len(inline_samples), "background": len(samples)}
        )
    )
    for sentence in proof.wrong:
        console.print(f"WRONG: {sentence}")
    return figures, not proof.wrong


def main() -> None:
    """Set up, run and print; then hold unless HOLD=no."""
    began = float(os.environ.get("DEMO_BEGAN") or time.time())
    for ending in (signal.SIGTERM, signal.SIGHUP):  # also when the terminal is closed
        signal.signal(ending, lambda signum, frame: sys.exit(128 + signum))
    shop = Shop(console.print)
    right = False
    try:
        shop.start()
        ready = time.time()
        figures, right = run(shop)
        figures["setup_s"] = round(ready - began, 1)
        figures["total_s"] = round(time.time() - began, 1)
        hold = os.environ.get("HOLD", "yes") != "no"
        if hold:
            console.print(
                f"Odoo runs at {shop.front.url} (log in as admin, password admin; or demo, demo): Sales, and "
                f"Background Jobs. The worker's log: {shop.world.folder}/worker0.log. Ctrl-C stops everything."
            )
        print(json.dumps({"sidestream_demo": figures}), flush=True)
        if hold:
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    except KeyboardInterrupt:
        sys.exit(130)
    except ServerFailed as error:
        sys.exit(str(error))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # clean up, however often Ctrl-C is pressed
        console.print("Stopping Odoo, the worker, the courier and PostgreSQL ...")
        shop.close()
    if not right:
        sys.exit(1)


if __name__ == "__main__":
    main()
