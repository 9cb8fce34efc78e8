"""Every registered part keeps the contract of its socket."""

from tessera.lab.contract import contract_tests

test_contract = contract_tests()
