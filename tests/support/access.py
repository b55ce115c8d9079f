"""Grants for tests: a person with scopes, as their token would give them."""

from __future__ import annotations

from datamanager.identity.grant import Grant, Means
from datamanager.identity.roles import load_roles
from datamanager.identity.scopes import Scope

ROLES = load_roles()


def granted(*scopes: str, person: str = "jo", groups: tuple[str, ...] = (), means: Means = Means.OIDC) -> Grant:
    """Return a grant of these scopes."""
    return Grant(person, frozenset(groups), tuple(map(Scope.parse, scopes)), means, "subject")


def in_role(*roles: str, person: str = "jo", groups: tuple[str, ...] = (), means: Means = Means.OIDC) -> Grant:
    """Return the grant of somebody who has these roles."""
    return Grant(person, frozenset(groups), ROLES.scopes_of(roles), means, "subject", None, roles)
