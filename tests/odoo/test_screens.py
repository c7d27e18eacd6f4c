"""Test the addon's screens in a headless Chromium, on Odoo with its demo data.

``SIDESTREAM_SCREENSHOTS=docs/images make test ARGS=tests/odoo/test_screens.py`` updates the screenshots of the manual.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.odoo.browser import Session
from tests.support.odoo import DATABASE, ROOT, OdooWorld

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

sys.path.append(str(ROOT / "scripts" / "demo"))
from front import Front  # noqa: E402

pytestmark = pytest.mark.timeout(420)  # the first run on a machine makes the base database
CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
PATIENCE = 120.0
NO_COURIER = "No courier is configured"
SEND, PRINT = "sale.order._send_to_shipping_connector", "sale.order._invoice_and_print"


class Desk(BaseHTTPRequestHandler):
    """A courier that answers while it is open."""

    opened = threading.Event()
    opened.set()

    def do_POST(self) -> None:
        self.opened.wait(PATIENCE)
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"reference": f"SHIP-{self.headers['Idempotency-Key'][-6:]}"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Office:
    """An Odoo with a worker and four confirmed orders, of which one could not be shipped."""

    def __init__(self, world: OdooWorld, courier: str) -> None:
        self.world, self.courier = world, courier
        self.look = world.connect()
        self.server = world.serve()
        self.admin = Session(self.server.url, DATABASE, "admin", "admin")
        self.admin.call("ir.config_parameter", "set_param", "report.url", self.server.url)
        self.ship_to(courier)
        self.worker = world.work("--children", "1")
        product = self.admin.call(
            "product.product",
            "create",
            [{"name": "Desk lamp", "is_storable": True, "invoice_policy": "order", "list_price": 39}],
        )[0]
        partners = self.admin.call("res.partner", "search", [["is_company", "=", True]], limit=4)
        carrier = self.admin.call("delivery.carrier", "search", [], limit=1)
        self.admin.call("delivery.carrier", "write", carrier, {"shipping_account": "ACME-7"})
        line = [0, 0, {"product_id": product, "product_uom_qty": 2}]
        self._order = {"carrier_id": carrier[0], "order_line": [line]}
        self._partners = partners
        self.orders = self.quotations()
        for order in self.orders[:3]:
            self.admin.call("sale.order", "action_confirm", [order])
        self.until(lambda: self.states() == ["done"] * 6)
        self.ship_to("")
        self.admin.call("sale.order", "action_confirm", [self.orders[3]])
        self.until(lambda: sorted(self.states()) == ["done"] * 7 + ["failed"])

    def quotations(self) -> list[int]:
        """Create a quotation for each of four customers."""
        return list(
            self.admin.call("sale.order", "create", [{**self._order, "partner_id": one} for one in self._partners])
        )

    def order_values(self) -> dict[str, Any]:
        """Return the values of a quotation."""
        return {**self._order, "partner_id": self._partners[0]}

    def ship_to(self, url: str) -> None:
        self.admin.call("ir.config_parameter", "set_param", "sidestream_demo.courier_url", url)

    def states(self, after: int = 0) -> list[str]:
        found = self.look.execute("SELECT state FROM sidestream_job WHERE id > %s ORDER BY id", [after])
        return [row[0] for row in found.fetchall()]

    def number(self, statement: str) -> int:
        row = self.look.execute(statement).fetchone()
        return int(row[0]) if row is not None else 0

    def until(self, seen: Callable[[], bool], what: Callable[[], object] | None = None) -> None:
        deadline = time.monotonic() + PATIENCE
        while not seen():
            assert time.monotonic() < deadline, f"{(what or self.states)()}\n{self.world.worker_log()[-3000:]}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    courier = ThreadingHTTPServer(("127.0.0.1", 0), Desk)
    threading.Thread(target=courier.serve_forever, daemon=True).start()
    with OdooWorld(("sidestream", "sidestream_demo"), fsync=False) as world:
        made = Office(world, f"http://127.0.0.1:{courier.server_port}")
        yield made
        made.look.close()
    courier.shutdown()
    courier.server_close()


class Screen:
    """A browser with the actions of a person."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._profile = tempfile.mkdtemp(prefix="sidestream-browser-")
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--window-size=1400,900", "--force-device-scale-factor=1", f"--user-data-dir={self._profile}",
        ):  # fmt: skip
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        # The web client uses the browser's time zone, the server the user's.
        self.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Europe/Brussels"})

    def forget(self) -> None:
        """Log out and clear the storage, but keep the cached assets."""
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        kinds = "cookies,local_storage,session_storage,indexeddb"
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": kinds})
        self.errors()

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def login(self, login: str) -> None:
        self.driver.get(f"{self.url}/web/login")
        self.one("input[name=login]", lambda found: found.is_displayed() and found.is_enabled()).send_keys(login)
        self.one("input[name=password]").send_keys(login)
        self.one("button[type=submit]").click()
        self.one(".o_web_client .o_main_navbar")

    def open(self, path: str, ready: str) -> None:
        self.driver.get(f"{self.url}/odoo/{path}")
        self.one(ready)

    def one(self, selector: str, fits: Callable[[WebElement], Any] = lambda found: True) -> WebElement:
        """Wait for the first element that fits."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                for found in self.driver.find_elements(By.CSS_SELECTOR, selector):
                    if fits(found):
                        return found
            except StaleElementReferenceException:
                pass
            if time.monotonic() > deadline:
                self.picture("failed")
                body = self.driver.find_element(By.TAG_NAME, "body").text
                raise AssertionError(f"{selector} never came; the page says: {body[:1500]}")
            time.sleep(0.05)

    def saying(self, selector: str, text: str) -> WebElement:
        return self.one(selector, lambda found: text in found.text)

    def texts(self, selector: str) -> list[str]:
        """Return the elements' texts in one call, because the web client may redraw them at any time."""
        script = "return [...document.querySelectorAll(arguments[0])].map(found => found.innerText)"
        return list(self.driver.execute_script(script, selector))

    def picture(self, name: str) -> None:
        folder = os.environ.get("SIDESTREAM_SCREENSHOTS")
        if folder:
            time.sleep(0.6)  # until animations end
            self.driver.save_screenshot(str(Path(folder, f"{name}.png")))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(office: Office) -> Iterator[Screen]:
    if not Path(DRIVER).exists():
        pytest.skip("There is no Chromium here; run: make odoo")
    screen = Screen(office.server.url)
    yield screen
    screen.close()


@pytest.fixture
def screen(browser: Screen) -> Screen:
    browser.forget()
    return browser


def rows(screen: Screen) -> list[str]:
    return screen.texts(".o_list_view .o_data_row")


def facets(screen: Screen) -> list[str]:
    return screen.texts(".o_searchview .o_facet_value")


def test_a_manager_finds_what_failed_and_retries_it(office: Office, screen: Screen) -> None:
    screen.login("admin")
    screen.open("background-jobs", ".o_list_view .o_data_row")
    assert facets(screen) == ["Pending", "Failed"]
    [row] = rows(screen)
    assert "Send to the courier" in row
    assert NO_COURIER in row
    assert "UserError" not in row

    screen.one(".o_searchview .o_facet_remove").click()
    office.until(lambda: len(rows(screen)) == 8, lambda: rows(screen))
    assert sum("Invoice and print" in row and "Done" in row for row in rows(screen)) == 4

    screen.saying(".o_data_row .o_data_cell", "Send to the courier").click()
    screen.saying(".o_form_view .alert-danger", NO_COURIER)
    assert screen.texts(".o_form_view .o_statusbar_buttons button") == ["Retry"]
    assert any("No courier" in event for event in screen.texts(".o_field_one2many .o_data_row"))
    screen.picture("job-form")
    screen.one(".o_field_one2many .o_data_row .o_data_cell").click()
    screen.saying(".modal .o_form_view", "Traceback")
    screen.one(".modal .btn-close").click()
    office.until(lambda: not screen.texts(".modal"))

    office.ship_to(office.courier)
    screen.saying(".o_statusbar_buttons button", "Retry").click()
    office.until(lambda: office.states() == ["done"] * 8)
    screen.driver.refresh()
    screen.saying(".o_form_view .o_arrow_button_current", "Done")
    assert not screen.texts(".o_form_view .alert-danger")
    assert screen.errors() == []


def test_searches_and_filters(office: Office, screen: Screen) -> None:
    screen.login("admin")
    screen.open("background-jobs?debug=0", ".o_control_panel")
    screen.one(".o_searchview .o_facet_remove").click()
    office.until(lambda: len(rows(screen)) == 8, lambda: rows(screen))
    box = screen.one(".o_searchview_input")
    box.send_keys("and print")
    screen.saying(".o_searchview_autocomplete", "Job")
    box.send_keys("\ue007")
    office.until(lambda: len(rows(screen)) == 4, lambda: rows(screen))
    assert all("Invoice and print" in row for row in rows(screen))

    screen.one(".o_searchview .o_facet_remove").click()
    screen.one(".o_searchview_dropdown_toggler").click()
    for name in ("Pending", "Scheduled", "Failed", "Done", "Cancelled", "With Failed Attempts", "My Jobs"):
        screen.one(".o_filter_menu .o_menu_item", lambda found, name=name: found.text == name)
    screen.one(".o_filter_menu .o_menu_item", lambda found: found.text == "With Failed Attempts").click()
    office.until(lambda: len(rows(screen)) == 1, lambda: rows(screen))
    screen.one(".o_group_by_menu .o_menu_item", lambda found: found.text == "State").click()
    screen.saying(".o_group_header", "Done (1)")
    assert screen.errors() == []


def test_an_order_shows_its_jobs(office: Office, screen: Screen) -> None:
    screen.login("admin")
    screen.open(f"action-sale.action_orders/{office.orders[0]}", ".o_form_view .oe_stat_button")
    button = screen.saying(".oe_stat_button", "Background Jobs")
    assert "2" in button.text
    screen.picture("order")
    button.click()
    office.until(lambda: len(rows(screen)) == 2, lambda: rows(screen))
    screen.saying(".o_data_row .o_data_cell", "Invoice and print").click()
    screen.one(".o_form_view button[name=action_open_records]").click()
    screen.saying(".o_form_view", "Desk lamp")
    assert screen.errors() == []


def test_a_company_switches_it_off(office: Office, screen: Screen) -> None:
    screen.login("admin")
    screen.open("action-base.action_res_company_form/1", ".o_form_view")
    screen.saying(".o_form_label", "Background Jobs")
    toggle = ".o_field_widget[name=sidestream_enabled] input"
    assert screen.one(toggle).is_selected()
    # In one call: the form is redrawn once the chatter is loaded, and Save appears only after a change.
    screen.driver.execute_script(f"document.querySelector({toggle!r}).click()")
    save = "document.querySelector('.o_form_button_save')?.click()"
    enabled = "SELECT count(*) FROM res_company WHERE id = 1 AND sidestream_enabled"
    try:
        office.until(lambda: screen.driver.execute_script(save) or office.number(enabled) == 0)
    finally:
        office.admin.call("res.company", "write", [1], {"sidestream_enabled": True})
    assert screen.errors() == []


def test_a_user_sees_only_own_jobs_and_nothing_technical(office: Office, screen: Screen) -> None:
    screen.login("demo")
    screen.open("background-jobs", ".o_view_nocontent")
    assert "No pending or failed jobs" in screen.texts(".o_view_nocontent")[0]
    user = Session(office.server.url, DATABASE, "demo", "demo")
    partner = office.admin.call("sale.order", "read", [office.orders[0]], ["partner_id"])[0]["partner_id"][0]
    order = user.call("sale.order", "create", [{"partner_id": partner}])[0]
    assert user.call("sale.order", "action_confirm", [order])
    found = user.call("sidestream.job", "search_read", [], ["name", "user_id"])
    assert [job["name"] for job in found] == ["Invoice and print", "Send to the courier"]
    screen.open(f"background-jobs/{found[1]['id']}", ".o_form_view")
    text = screen.saying(".o_form_view", "Send to the courier").text
    for noise in (SEND, PRINT, "Arguments", "Ordering Key", "Queue", "Crashes"):
        assert noise not in text
    assert screen.errors() == []


def test_the_second_user_of_the_demo_has_the_rights_that_the_jobs_need(office: Office) -> None:
    """The jobs run as the user who confirms, ship the order and post an invoice."""
    before = office.number("SELECT max(id) FROM sidestream_job")
    user = Session(office.server.url, DATABASE, "demo", "demo")
    [order] = user.call("sale.order", "create", [office.order_values()])
    office.ship_to(office.courier)
    try:
        user.call("sale.order", "action_confirm", [order])
        office.until(lambda: "pending" not in office.states(before) and len(office.states(before)) == 2)
    finally:
        office.ship_to("")
    look = "SELECT action, state, error FROM sidestream_job WHERE id > %s ORDER BY id"
    assert office.look.execute(look, [before]).fetchall() == [(SEND, "done", None), (PRINT, "done", None)]


def test_the_demos_address_reaches_odoo_and_its_real_time_connection(office: Office) -> None:
    """With several processes, Odoo serves WebSockets on another port."""
    server = office.world.serve(workers=2)
    with Front(server.port, server.gevent_port) as front:
        with urllib.request.urlopen(f"{front.url}/web/health", timeout=60) as answer:
            assert answer.status == 200
        assert handshake(server.port) != "101"
        deadline = time.monotonic() + PATIENCE
        while (status := handshake(front.port)) != "101":
            assert time.monotonic() < deadline, status  # that process may still be loading
            time.sleep(0.2)


def handshake(port: int) -> str:
    """Ask for a WebSocket as a browser does; return the status of the answer."""
    request = (
        f"GET /websocket?version=19.0-2 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.encode())
        return connection.recv(64).decode(errors="replace").partition(" ")[2][:3]


def test_a_busy_moment(office: Office, screen: Screen) -> None:
    """The list shows a running, a waiting and a failed job."""
    before = office.number("SELECT max(id) FROM sidestream_job")
    orders = office.quotations()
    office.ship_to("")
    office.admin.call("sale.order", "action_confirm", [orders[0]])
    office.until(lambda: sorted(office.states(before)) == ["done", "failed"])
    office.ship_to(office.courier)
    office.admin.call("sale.order", "action_confirm", [orders[1]])
    office.until(lambda: office.states(before).count("done") == 3)
    Desk.opened.clear()
    try:
        for order in orders[2:]:
            office.admin.call("sale.order", "action_confirm", [order])
        screen.login("admin")

        def shown() -> bool:
            screen.open("background-jobs", ".o_list_view .o_data_row")
            screen.one(".o_searchview .o_facet_remove").click()
            screen.saying(".o_list_view .o_data_row", "Done")
            found = "\n".join(rows(screen))
            return all(words in found for words in ("Running", "Waiting", NO_COURIER))

        office.until(shown, lambda: rows(screen))
        screen.picture("jobs-list")
    finally:
        Desk.opened.set()
    office.until(lambda: sorted(office.states(before)) == ["done"] * 7 + ["failed"])
    assert screen.errors() == []
