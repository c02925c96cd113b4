"""Teams and their tokens: who may submit as which team.

A token is the organiser's signature (HMAC-SHA256, RFC 2104) of the team's name and the token's number, made with a secret that lies in
the sealed store alone. The team signs what it sends with it, so the token itself never travels; whoever holds the secret can make the
same signature and compare. Someone who can write into the inbox can therefore copy a record, but not make or change one.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, SecretStr

from sensorium_pipeline.errors import InputError
from sensorium_pipeline.storage import MissingObjectError, Series, Store, canonical_json

TEAM = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
SECRET = "secrets/team-tokens.json"
TOKEN = re.compile(r"sensorium-(team|organisers)\.([a-z0-9_-]+)\.([0-9]{1,9})\.([0-9a-f]{64})")
ADVICE = "Set SENSORIUM_TEAM_TOKEN to what `sensorium team add` printed, or ask the organisers for a new token"

Kind = Literal["team", "organisers"]


class Team(BaseModel):
    """The newest event of a team: event of the series `teams/<name>` in the sealed store.

    Attributes:
        kind: "organisers" for those who submit the baselines: no quota and no dates hold for them.
        state: whether its token holds.
        number: of the token; a team whose token was revoked gets the next.
        at: when it was issued or revoked.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    state: Literal["active", "revoked"]
    number: int
    at: AwareDatetime


@dataclass(frozen=True)
class Token:
    """A token as its team holds it; the key is never shown."""

    team: str
    kind: Kind
    number: int
    key: bytes = field(repr=False)

    def sign(self, statement: BaseModel) -> str:
        """Signature, 64 hexadecimal digits, of the kind and every field of a statement."""
        return _signature(self.key, statement)


def parse_token(text: SecretStr | None) -> Token:
    """The token in a text; errors never show it.

    Raises:
        InputError: there is none, or it is not whole.
    """
    if text is None or not text.get_secret_value().strip():
        raise InputError("no team token is given", where="SENSORIUM_TEAM_TOKEN", advice=ADVICE)
    found = TOKEN.fullmatch(text.get_secret_value().strip())
    if found is None:
        raise InputError("this is not a team token", where="SENSORIUM_TEAM_TOKEN", advice=ADVICE)
    return Token(found[2], "organisers" if found[1] == "organisers" else "team", int(found[3]), bytes.fromhex(found[4]))


def check_team_name(name: str) -> str:
    """The name itself; `InputError` where it cannot be one."""
    if not TEAM.fullmatch(name):
        raise InputError(
            f"{name[:60]!r} is no name for a team",
            where="team",
            advice="Use small letters, digits, - and _, beginning with a letter or digit, at most 40",
        )
    return name


def add_team(sealed: Store, name: str, at: datetime, *, kind: Kind = "team") -> SecretStr:
    """Add a team, or give one whose token was revoked a new one.

    Returns:
        Its token, to be handed to the team and kept nowhere.

    Raises:
        InputError: the name cannot be one, or the team has a token that holds.
    """
    series = Series(sealed, f"teams/{check_team_name(name)}")
    latest = series.latest(Team)
    if latest is not None and latest[1].state == "active":
        raise InputError("the team has a token", where=name, advice=f"Revoke it first: `sensorium team revoke {name}`")
    number = (latest[0] if latest else 0) + 1
    if not series.create(number, Team(name=name, kind=kind, state="active", number=number, at=at)):
        raise InputError("somebody else added the team at the same moment", where=name, advice="They hold its token")
    return token_of(sealed, name)


def revoke_team(sealed: Store, name: str, at: datetime) -> Team:
    """Let a team's token hold no longer; what was taken in with it stays, what waits in the inbox will be refused.

    Raises:
        InputError: there is no such team, or its token was revoked before.
    """
    team = read_team(sealed, name)
    if team is None or team.state == "revoked":
        known = ", ".join(one.name for one in list_teams(sealed)) or "none yet"
        raise InputError("its token was revoked before" if team else "there is no such team", where=name, advice=f"Teams: {known}")
    revoked = team.model_copy(update={"state": "revoked", "at": at})
    Series(sealed, f"teams/{name}").append(revoked)
    return revoked


def list_teams(sealed: Store) -> list[Team]:
    """The newest event of every team, by name."""
    return [team for name in sealed.list("teams") if (team := read_team(sealed, name)) is not None]


def read_team(sealed: Store, name: str) -> Team | None:
    """The newest event of a team, or None where there is no such team."""
    latest = Series(sealed, f"teams/{name}").latest(Team) if TEAM.fullmatch(name) else None
    return latest[1] if latest else None


def token_of(sealed: Store, name: str) -> SecretStr:
    """The token of a team that has one, made again from the organisers' secret.

    Raises:
        InputError: no team of this name has a token that holds.
    """
    team = read_team(sealed, name)
    if team is None or team.state == "revoked":
        raise InputError("no such team has a token", where=name, advice=f"`sensorium team add {name}` issues one")
    return SecretStr(f"sensorium-{team.kind}.{team.name}.{team.number}.{_key(sealed, team).hex()}")


def why_not_signed(sealed: Store, team: Team | None, number: int, statement: BaseModel, signature: str) -> str:
    """Why a statement is not one of the team's; empty where it is. Signatures are compared in constant time."""
    if team is None:
        return "there is no such team"
    if not hmac.compare_digest(_signature(_key(sealed, team), statement).encode(), signature.encode(errors="replace")):
        return "the signature is not the team's" if number >= team.number else "it is signed with a token that was replaced"
    return "the team's token was revoked" if team.state == "revoked" else ""


def _signature(key: bytes, statement: BaseModel) -> str:
    return hmac.new(key, canonical_json({"kind": type(statement).__name__, "statement": statement}), hashlib.sha256).hexdigest()


def _key(sealed: Store, team: Team) -> bytes:
    signed = canonical_json({"kind": team.kind, "team": team.name, "number": team.number})
    return hmac.new(_secret(sealed), signed, hashlib.sha256).digest()


def _secret(sealed: Store) -> bytes:
    """The organisers' secret, made when it is first needed."""
    try:
        return sealed.read(SECRET)
    except MissingObjectError:
        sealed.create(SECRET, secrets.token_hex(32).encode())
        return sealed.read(SECRET)
