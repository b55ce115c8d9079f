"""Fair share: whose turn it is among the queued transfers of one priority.

First pairs of machines (source and destination) take turns, then the groups of the pair, then its oldest transfer goes.

- Of the pairs that wait, the one goes that was served longest ago, where each transfer of it that movers hold counts as
  PATIENCE turns: who holds h slots more than others is passed over for h × PATIENCE turns at most. So a pair of slow
  machines does not fill all slots, and whatever others hold and request, each pair has its turn.
- The groups of a pair take turns in rounds, by name. A round has the transfers that waited when it began: those that
  arrive meanwhile wait for the next one, so that no stream of new groups keeps an old one waiting.

Where transfers share a run (`models.transfers.sharing`), the first one has its turn, and those that come next of its
pair join it in the order in which they would have had theirs: for the pair that is one turn, for its groups many.

A turn is one statement that looks into one index (`ix_transfers_queue`), however many transfers and groups wait; once a
round it reads past what arrived since the round began. The pairs are found by skipping from one to the next in the
index (https://wiki.postgresql.org/wiki/Loose_indexscan).
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import and_, bindparam, func, literal, select, union_all
from sqlalchemy.orm import Session

from datamanager.domain.fields import Priority
from models.tables import Transfer, TransferTurn
from models.transfers.sharing import FACTS

NEVER = datetime(1970, 1, 1, tzinfo=UTC)
LAST = "\U0010ffff"
"""No group's name is beyond it in bytes: behind it, a round is over."""
PATIENCE = 64
"""Turns that a pair is passed over for each transfer that movers hold of it beyond what they hold of others."""
GROUPS = 64
"""Groups of a pair that share a run at most: each one is looked up."""
LOOKED_AT = 400
"""Transfers that are looked at for one run, of all its groups together."""


def pair_of(source: str | None, destination: str | None) -> str:
    """Return the pair of two machines, as `Transfer.share_pair` has it."""
    return f"{source or ''}>{destination or ''}"


def ends_of(pair: str) -> set[str]:
    """Return the machines of a pair."""
    return set(pair.split(">")) - {""}


class Chosen(NamedTuple):
    """A transfer whose turn it is, its pair of machines, and what `models.transfers.sharing` asks of it (FACTS)."""

    id: UUID
    pair: str
    facts: Any


class ShareQueries:
    """The statements that choose, made once. `takeable` are the conditions of transfers that can be taken, with the
    parameter `now`.
    """

    def __init__(self, takeable: Sequence[Any]) -> None:
        def first_pair(priority: Any, *conditions: Any) -> Any:
            mine = select(Transfer.share_pair).where(Transfer.priority == priority, *takeable, *conditions)
            return mine.order_by(Transfer.share_pair).limit(1).scalar_subquery()

        names = union_all(*(select(literal(one.value).label("priority")) for one in Priority)).subquery()
        found = select(names.c.priority, first_pair(names.c.priority).label("pair")).cte("pairs", recursive=True)
        following = first_pair(found.c.priority, Transfer.share_pair > found.c.pair)
        found = found.union_all(select(found.c.priority, following).where(found.c.pair.is_not(None)))
        self.pairs = select(found.c.priority, found.c.pair).where(found.c.pair.is_not(None))
        """The pairs of machines that transfers wait for, with their priority."""

        of_round = and_(Transfer.share_group > bindparam("last_group"), Transfer.created <= bindparam("round_began"))
        mine = (
            select(Transfer.id)
            .where(
                Transfer.priority == bindparam("priority"),
                Transfer.share_pair == bindparam("pair"),
                Transfer.id.not_in(bindparam("besides", expanding=True)),
                *takeable,
            )
            .order_by(Transfer.share_group, Transfer.created, Transfer.id)
            .limit(1)
        )
        head = func.coalesce(mine.where(of_round).scalar_subquery(), mine.scalar_subquery())
        self.head = (
            select(*FACTS, Transfer.share_group, of_round.label("of_round"))
            .where(Transfer.id == head, *takeable)  # on PostgreSQL others may have changed it since
            .with_for_update(skip_locked=True, of=Transfer)
        )
        """The transfer whose turn it is of a pair: the oldest of the next group of the round, or of a new round."""

        of_pair = Transfer.priority == bindparam("priority"), Transfer.share_pair == bindparam("pair"), *takeable

        def first_group(beyond: Any) -> Any:
            group = select(Transfer.share_group).where(*of_pair, beyond)
            return group.order_by(Transfer.share_group).limit(1).scalar_subquery()

        named = select(first_group(Transfer.share_group >= bindparam("start")).label("name"))
        groups = named.cte("groups", recursive=True)
        following_group = select(first_group(Transfer.share_group > groups.c.name))
        groups = groups.union_all(following_group.where(groups.c.name.is_not(None)))
        self.groups = select(groups.c.name).where(groups.c.name.is_not(None)).limit(bindparam("most"))
        """The names of a pair's groups that wait, from `start` on."""
        self.oldest = (
            select(*FACTS)
            .where(*of_pair, Transfer.share_group == bindparam("group"))
            .order_by(Transfer.created, Transfer.id)
            .limit(bindparam("most"))
            .with_for_update(skip_locked=True, of=Transfer)
        )
        """The oldest transfers of a group of a pair, FACTS of each."""
        some = select(Transfer.id).where(*of_pair).limit(bindparam("most")).subquery()
        self.count = select(func.count()).select_from(some)
        """How many transfers of a pair wait, as far as `most`."""


def waiting_pairs(session: Session, queries: ShareQueries, time: datetime) -> dict[str, list[str]]:
    """Return the pairs of machines that transfers wait for, by priority."""
    waiting: dict[str, list[str]] = defaultdict(list)
    for priority, pair in session.execute(queries.pairs, {"now": time}):
        waiting[priority].append(pair)
    return waiting


class FairShare:
    """The turns of one transaction that takes transfers; others that take wait meanwhile.

    `held` counts what movers hold by pair: it is kept up. `besides`: these are left out.
    """

    def __init__(
        self, session: Session, queries: ShareQueries, time: datetime, held: Counter[str], besides: Collection[UUID]
    ) -> None:
        self._session = session
        self._queries = queries
        self._time = time
        self._held = held
        self._besides = list(besides)
        self._chosen: Counter[tuple[str, str]] = Counter()
        self._waiting = waiting_pairs(session, queries, time)
        self._turns = {(turn.priority, turn.pair): turn for turn in session.scalars(select(TransferTurn))}
        self._served: Counter[str] = Counter()
        for turn in self._turns.values():
            self._served[turn.priority] = max(self._served[turn.priority], turn.served)

    def next(self, priority: str, full: Collection[str]) -> Chosen | None:
        """Choose and lock the transfer whose turn it is, and note its turn; None when none waits that touches no
        machine of `full`.
        """
        pairs = [pair for pair in self._waiting[priority] if ends_of(pair).isdisjoint(full)]
        while pairs:
            turn = min((self._turn(priority, pair) for pair in pairs), key=self._rank)
            head = self._session.execute(self._queries.head, self._place_of(turn)).one_or_none()
            if head is not None:
                self._note(turn, head)
                return Chosen(head.id, turn.pair, head)
            pairs.remove(turn.pair)
            self._waiting[priority].remove(turn.pair)
        return None

    def more_wait_than(self, count: int, full: Collection[str]) -> bool:
        """Say whether more than `count` transfers wait, and are not chosen, that touch no machine of `full`."""
        for priority, pairs in self._waiting.items():
            for pair in pairs:
                if count >= 0 and ends_of(pair).isdisjoint(full):
                    count -= self.waiting(priority, pair, count + 1)
        return count < 0

    def waiting(self, priority: str, pair: str, most: int) -> int:
        """Count what waits of a pair, and is not chosen, as far as `most`."""
        chosen = self._chosen[priority, pair]
        of_pair = {"priority": priority, "pair": pair, "now": self._time, "most": most + chosen}
        return (self._session.scalar(self._queries.count, of_pair) or 0) - chosen

    def company(self, priority: str, first: Chosen, most: int, joins: Callable[[Any], bool]) -> list[UUID]:
        """Choose and lock up to `most` transfers that share the run of `first`, which was chosen last: of its pair, in
        the order of the groups' turns, which are noted; those for which `joins` says no are left out, and lose no turn.
        """
        turn = self._turn(priority, first.pair)
        names, all_of_them = self._groups_after(turn)
        waiting = {name: self._oldest(turn, name, max(1, LOOKED_AT // len(names))) for name in names}
        found, new_round = list[UUID](), False
        while any(waiting.values()) and len(found) < most:
            for name in names:
                new_round = new_round or name <= first.facts.share_group
                rows = waiting[name]
                while rows and (new_round or rows[0].created <= turn.round_began):
                    row = rows.popleft()
                    if joins(row):
                        found.append(row.id)
                        turn.last_group = name
                        if new_round:
                            turn.round_began = self._time
                        break
                if len(found) == most:
                    break
            if not all_of_them:
                break  # the others have their turn first
            new_round = True
        self._besides += found
        self._chosen[priority, first.pair] += len(found)
        return found

    def _groups_after(self, turn: TransferTurn) -> tuple[list[str], bool]:
        """Return the groups of a pair that wait, at most GROUPS, in the order of their turns after the group that had
        the last one, which is the last of them; and whether these are all.
        """
        last = turn.last_group
        asked = {"priority": turn.priority, "pair": turn.pair, "now": self._time, "most": GROUPS + 1}
        names = list(self._session.scalars(self._queries.groups, {**asked, "start": last}))
        if len(names) <= GROUPS:
            before = self._session.scalars(self._queries.groups, {**asked, "start": ""})
            names += [name for name in before if name < last]
        after = [name for name in names if name != last]
        return ([*after, last], True) if len(after) < GROUPS else (after[:GROUPS], False)

    def _oldest(self, turn: TransferTurn, group: str, most: int) -> deque[Any]:
        of_group = {"priority": turn.priority, "pair": turn.pair, "now": self._time, "group": group, "most": most}
        chosen = set(self._besides)
        return deque(row for row in self._session.execute(self._queries.oldest, of_group) if row.id not in chosen)

    def _turn(self, priority: str, pair: str) -> TransferTurn:
        turn = self._turns.get((priority, pair))
        if turn is None:
            turn = TransferTurn(priority=priority, pair=pair, served=0, last_group=LAST, round_began=NEVER)
            self._turns[priority, pair] = turn
        return turn

    def _rank(self, turn: TransferTurn) -> tuple[int, str]:
        return turn.served + PATIENCE * self._held[turn.pair], turn.pair

    def _place_of(self, turn: TransferTurn) -> dict[str, Any]:
        names = "priority", "pair", "last_group", "round_began"
        return {name: getattr(turn, name) for name in names} | {"now": self._time, "besides": self._besides}

    def _note(self, turn: TransferTurn, head: Any) -> None:
        self._besides.append(head.id)
        self._chosen[turn.priority, turn.pair] += 1
        self._held[turn.pair] += 1
        self._served[turn.priority] += 1
        turn.served, turn.last_group = self._served[turn.priority], head.share_group
        if not head.of_round:
            turn.round_began = self._time
        self._session.add(turn)
