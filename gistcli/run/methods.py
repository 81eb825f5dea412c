"""From a method to its entry in tuner.json and back."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, version

from pydantic import ValidationError

from gistcli import registry
from gistcli.artifacts.tensors import RELOAD
from gistcli.artifacts.tuner_file import MethodInfo
from gistcli.errors import NotFound, UnknownName, WeightsError
from gistcli.methods.base import Method


def method_info(method: Method, name: str) -> MethodInfo:
    """Name, options and the distribution that the code comes from."""
    package = type(method).__module__.partition(".")[0]
    distribution = packages_distributions().get(package, [""])[0]
    try:
        number = version(distribution) if distribution else ""
    except PackageNotFoundError:
        number = ""
    return MethodInfo(
        name=name,
        options=method.model_dump(mode="json"),
        distribution=distribution or "a file of its own",
        version=number,
    )


def method_of(info: MethodInfo) -> Method:
    """The method that a run was trained with.

    Raises:
        NotFound: its code is not installed; says what to install.
        WeightsError: options that it refuses.
    """
    try:
        method: Method = registry.resolve("methods", info.name).model_validate(info.options)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise WeightsError(
            f"tuner.json has options that {info.name} refuses: {found}.", RELOAD
        ) from error
    except (UnknownName, NotFound) as error:
        raise NotFound(
            f"The run was trained with the method {info.name!r} of {info.distribution} "
            f"{info.version}, which is not here.",
            f"Install it: pip install {info.distribution}=={info.version}",
        ) from error
    return method
