"""Every broker keeps the contract of ``sidestream.broker.protocol``."""

from sidestream.testing import broker_contract, broker_leases


class TestOrder(broker_contract.OrderCases):
    pass


class TestKeys(broker_contract.KeyCases):
    pass


class TestWaiting(broker_contract.WaitingCases):
    pass


class TestLeases(broker_leases.LeaseCases):
    pass


class TestContents(broker_leases.ContentsCases):
    pass


class TestDirect(broker_leases.DirectCases):
    pass
