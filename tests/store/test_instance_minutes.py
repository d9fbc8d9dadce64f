"""Time of online endpoints' instances: each full minute that an instance saw begin, once, from its type's price on."""

from dataclasses import replace

from sqlalchemy import select

from access.store import create_organization, create_project
from billing.close import close_and_post
from billing.preview import invoice_preview
from catalog import price_book
from catalog.model import INSTANCE_MODEL
from core.clock import MINUTE_MS, ManualClock
from core.database import Database
from functions.budgets import BudgetKeeper
from functions.minute_tick.sweeper import Sweeper
from metering.recount import minutes_of_endpoints
from metering.tables import endpoint_minutes
from serving import store as serving_store
from serving.model import Endpoint, Replica
from serving.online import store
from serving.online.model import OnlineDeployment, OnlineEndpoint
from serving.online.spec import DeploymentSpec, EndpointSpec

NOW = 1_760_000_040_000  # a full minute
TYPE = "Standard_DS3_v2"
SPEC = DeploymentSpec("blue", "script", code_path="/code", scoring_script="score.py", instance_type=TYPE)
REPLICA = "rep_01jz00000000000000000000"


class World:
    """An endpoint `shop` with a deployment `blue`, and a platform that sees time go by."""

    def __init__(self, db: Database, spec: DeploymentSpec = SPEC, *, price: int | None = 10**10) -> None:
        self.db, self.clock = db, ManualClock(NOW)
        with db.begin() as connection:
            organization = create_organization(connection, "acme", NOW)
            self.org = organization.id
            project = create_project(connection, organization, "web", NOW).id
            row = Endpoint("ep_1", "online", "shop", self.org, project, "", "", "Online", {}, NOW)
            serving_store.insert_endpoint(connection, row)
            store.insert_online_endpoint(
                connection,
                OnlineEndpoint("ep_1", EndpointSpec("shop", traffic={"blue": 100}), "Succeeded", NOW),
            )
            made = OnlineDeployment(
                "dep_1", "ep_1", self.org, project, "blue", spec, "Succeeded", "", "", 1, 1, NOW, NOW
            )
            store.insert_online_deployment(connection, made, "")
        if price is not None:
            self.price(price)
        self.platform()

    def platform(self) -> None:
        """It starts anew."""
        self.sweeper = Sweeper(self.db, self.clock, BudgetKeeper(price_book))

    def price(self, pico: int) -> None:
        with self.db.begin() as connection:
            price_book.put_list_prices(
                connection, INSTANCE_MODEL + TYPE, {"endpoint_minute": pico}, self.clock.now_ms()
            )

    def start(self, number: int = 1) -> Replica:
        now_ms = self.clock.now_ms()
        replica = Replica(f"{REPLICA}{number:02}", "dep_1", "ready", "", now_ms, now_ms, now_ms)
        with self.db.begin() as connection:
            serving_store.insert_replica(connection, replica, now_ms)
        return replica

    def stop(self, replica: Replica) -> None:
        now_ms = self.clock.now_ms()
        with self.db.begin() as connection:
            serving_store.save_replica(
                connection, replace(replica, state="stopped", stopped_ms=now_ms), now_ms
            )

    def minutes(self) -> list[tuple[str, int]]:
        """What is on record: the instance's last digit, and which minute."""
        self.sweeper.sweep()
        with self.db.read() as connection:
            rows = connection.execute(
                select(endpoint_minutes.c.id, endpoint_minutes.c.service_minute_ms).order_by(
                    endpoint_minutes.c.id
                )
            )
            return [
                (row.id.partition("/")[0][-1], (row.service_minute_ms - NOW) // MINUTE_MS) for row in rows
            ]


def test_each_minute_that_an_instance_saw_begin(db: Database) -> None:
    world = World(db)
    world.clock.advance(30_000)
    first = world.start(1)
    assert world.minutes() == [], "the minute had begun before it"
    world.clock.advance(30_000)
    assert world.minutes() == [("1", 1)]
    world.clock.advance(10_000)
    world.stop(first)
    second = world.start(2)  # a restart within the minute costs nothing more
    world.start(3)
    world.clock.advance(2 * MINUTE_MS)
    assert world.minutes() == [("1", 1), ("2", 2), ("2", 3), ("3", 2), ("3", 3)]
    world.stop(second)
    world.clock.advance(MINUTE_MS)
    assert world.minutes()[-1] == ("3", 4) and ("2", 4) not in world.minutes()


def test_one_that_came_and_went_within_a_minute_costs_nothing(db: Database) -> None:
    world = World(db)
    world.clock.advance(1)
    brief = world.start()
    world.clock.advance(30_000)
    world.stop(brief)
    world.clock.advance(5 * MINUTE_MS)
    assert world.minutes() == []


def test_what_a_platform_did_not_see_is_nobodys(db: Database) -> None:
    world = World(db)
    left = world.start()
    assert world.minutes() == [("1", 0)]
    world.clock.advance(60 * MINUTE_MS)  # it was killed, and stood still
    world.platform()
    assert world.minutes() == [("1", 0)]
    world.stop(left)  # recovery finds that it is gone
    assert world.minutes() == [("1", 0)]


def test_without_a_price_there_is_nothing_and_the_first_price_is_not_for_the_past(db: Database) -> None:
    world = World(db, price=None)
    world.start()
    world.clock.advance(10 * MINUTE_MS + 1)
    assert world.minutes() == []
    world.price(10**10)
    world.clock.advance(MINUTE_MS)
    assert world.minutes() == [("1", 11)]


def test_catalog_models_are_paid_by_the_token(db: Database) -> None:
    world = World(db, replace(SPEC, kind="catalog", model="acme/chat", code_path="", scoring_script=""))
    world.start()
    world.clock.advance(5 * MINUTE_MS)
    assert world.minutes() == []


def test_the_invoice_has_one_line_for_all_instances_of_an_endpoint(db: Database) -> None:
    world = World(db)
    for number in (1, 2):
        world.start(number)
    world.clock.advance(3 * MINUTE_MS - 1)
    assert len(world.minutes()) == 6
    world.clock.advance(10 * MINUTE_MS)
    for number in (1, 2):
        world.stop(Replica(f"{REPLICA}{number:02}", "dep_1", "ready", "", NOW, NOW, NOW))
    end_ms = world.clock.now_ms()
    with db.read() as connection:
        _, findings = minutes_of_endpoints(connection, NOW, end_ms, NOW)
        assert not findings, "two instances are no minute on record twice"
    world.minutes()
    close_and_post(db, price_book, end_ms + MINUTE_MS, 1000)
    with db.read() as connection:
        found = invoice_preview(connection, world.org, NOW, end_ms, end_ms, price_book)
    [line] = found.lines
    assert (line.model_id, line.quantity, line.amount_pico) == (INSTANCE_MODEL + TYPE, 26, 26 * 10**10)
    assert line.endpoint_name == "shop"
