"""Every broker keeps the contract of ``sidestream.broker.protocol``."""

from sidestream.testing import broker_contract, broker_contract_leases


class TestOrder(broker_contract.OrderCases):
    pass


class TestKeys(broker_contract.KeyCases):
    pass


class TestWaiting(broker_contract.WaitingCases):
    pass


class TestLeases(broker_contract_leases.LeaseCases):
    pass


class TestContents(broker_contract_leases.ContentsCases):
    pass


class TestDirect(broker_contract_leases.DirectCases):
    pass
