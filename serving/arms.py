"""Who is answered by which release: settings that change while requests are answered."""

from typing import Annotated, Final, Self

from pydantic import ConfigDict, Field, model_validator

from recsys.assignment import assign
from recsys.contracts.config import Config

ARMS_DOCUMENT: Final = "arms"
NO_ARM: Final = "all"
"""The label of users that the current release answers while no arm does: all of them, or those of an arm whose release
is not loaded."""
ReleaseName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Arm(Config):
    """Users that one release answers."""

    name: ArmName
    release: ReleaseName | None = None
    """None: the current one."""
    weight: float = Field(default=1.0, ge=0, le=1e6)


class Arms(Config):
    """Who is answered by which release."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"arms": [{"name": "control"}, {"name": "new", "release": "2026-11-25"}], "shadow": "2026-11-26"}
            ]
        }
    )
    arms: list[Arm] = Field(default=[Arm(name=NO_ARM)], min_length=1, max_length=20)
    salt: str = Field(default="recsys", max_length=64)
    shadow: ReleaseName | None = None
    """Also answers, for users of the store; its answers are counted and not shown."""

    @model_validator(mode="after")
    def _someone_is_answered(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or "shadow" in names:
            raise ValueError("arms need names of their own, and `shadow` is taken")
        if NO_ARM in names and (len(names) > 1 or self.arms[0].release is not None):
            raise ValueError(f"`{NO_ARM}` is the label of users in no arm; give the arms names of their own")
        if not any(arm.weight for arm in self.arms):
            raise ValueError("one arm needs a weight above 0")
        return self

    @property
    def releases(self) -> list[str]:
        """Names of the releases that must be loaded beside the current one, the shadow's included."""
        return sorted({name for name in [self.shadow, *(arm.release for arm in self.arms)] if name is not None})

    def arm_of(self, key: str) -> Arm:
        """The arm that a user (or a request of nobody's) is dealt to."""
        if len(self.arms) == 1:  # no experiment: nothing to deal
            return self.arms[0]
        name = assign(key, self.salt, [(arm.name, arm.weight) for arm in self.arms])
        return next(arm for arm in self.arms if arm.name == name)
