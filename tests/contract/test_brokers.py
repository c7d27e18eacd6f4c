"""Every broker keeps the contract of ``sidestream.broker.protocol``."""

from tests.support import (
    broker_contract,
    broker_contract_edited,
    broker_contract_leases,
    broker_contract_limits,
    broker_contract_order,
    broker_contract_pauses,
    broker_contract_traps,
    broker_contract_waiting,
)


class TestOrder(broker_contract.OrderCases):
    pass


class TestKeys(broker_contract.KeyCases):
    pass


class TestWaiting(broker_contract_waiting.WaitingCases):
    pass


class TestLeases(broker_contract_leases.LeaseCases):
    pass


class TestContents(broker_contract_leases.ContentsCases):
    pass


class TestEdited(broker_contract_edited.EditedCases):
    pass


class TestDirect(broker_contract_leases.DirectCases):
    pass


class TestPriorities(broker_contract_order.PriorityCases):
    pass


class TestFairness(broker_contract_order.FairnessCases):
    pass


class TestPauses(broker_contract_pauses.PauseCases):
    pass


class TestRules(broker_contract_pauses.RulesCases):
    pass


class TestUnknownActions(broker_contract_pauses.UnknownCases):
    pass


class TestConcurrency(broker_contract_limits.ConcurrencyCases):
    pass


class TestRates(broker_contract_limits.RateCases):
    pass


class TestLimitsAfterALoss(broker_contract_limits.LimitLossCases):
    pass


class TestStreamTraps(broker_contract_traps.TrapCases):
    pass
