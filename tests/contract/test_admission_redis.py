"""What only a shared Redis can be asked."""

from access.admission.model import Limits, ScopePolicy
from tests.contract.admission_values import NOW, Driver, budget, granted, refused


def test_an_emptied_redis_refuses_budgets_until_it_is_filled_again(redis_url: str) -> None:
    driver = Driver("redis", redis_url)
    each = budget(1000)
    driver.budgets(each)
    driver.settle(driver.admit("a", NOW, 1, 900), 1, 900)
    driver.run(driver.client.flushall())
    assert refused(driver.admit("b", NOW, 1, 200)).reason == "unavailable"
    driver.exchange([driver.balance(each, 900, through=1)])
    assert refused(driver.admit("b", NOW, 1, 200)).reason == "budget"
    granted(driver.admit("c", NOW, 1, 100))
    driver.close()


def test_two_gateways_on_one_redis_share_every_limit(redis_url: str) -> None:
    one, two = Driver("redis", redis_url), Driver("redis", redis_url)
    for driver in (one, two):
        driver.policies(
            ScopePolicy("key", "key_1", Limits(3)),
            ScopePolicy("organization", "org_1", budgets=(budget(100),)),
        )
    granted(one.admit("a", NOW, 1, 40))
    granted(two.admit("b", NOW, 1, 40))
    assert refused(two.admit("c", NOW, 1, 40)).reason == "budget_held"
    granted(one.admit("d", NOW, 1, 20))
    assert refused(two.admit("e", NOW, 1, 0)).limit == "requests_per_minute"
    one.close()
    two.close()
