"""From a method to its entry in tuner.json and back."""

from __future__ import annotations

from pydantic import ValidationError

from gistcli import __version__, registry
from gistcli.artifacts.tensors import RELOAD
from gistcli.artifacts.tuner_file import MethodInfo
from gistcli.errors import NotFound, UnknownName, WeightsError
from gistcli.hyper.section import Hyper, WithHyper
from gistcli.methods.base import Method
from gistcli.methods.gist import Gist, WithGist


def method_info(method: Method, name: str) -> MethodInfo:
    """Name, options, those of what stands around it, and where the code comes from."""
    distribution, version = _source(name)
    inner = method.inner if isinstance(method, WithGist | WithHyper) else method
    return MethodInfo(
        name=name,
        options=inner.model_dump(mode="json"),
        gist=method.gist.model_dump(mode="json") if isinstance(method, WithGist) else None,
        hyper=method.hyper.model_dump(mode="json") if isinstance(method, WithHyper) else None,
        distribution=distribution,
        version=version,
    )


def method_of(info: MethodInfo) -> Method:
    """The method that a run was trained with.

    Raises:
        NotFound: its code is not here; says what to install, or which file is missing.
        WeightsError: options that it refuses.
        Refused: its code cannot be imported.
    """
    try:
        method: Method = registry.resolve("methods", info.name).model_validate(info.options)
        if info.hyper is not None:
            return Hyper.model_validate(info.hyper).wrap(method)
        return method if info.gist is None else Gist.model_validate(info.gist).wrap(method)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise WeightsError(
            f"tuner.json has options that {info.name} refuses: {found}.{_other_version(info)}",
            RELOAD,
        ) from error
    except (UnknownName, NotFound) as error:
        if registry.split_file(info.name) is not None:
            raise NotFound(
                f"The run was trained with a method from a file: {error.message}",
                "Put it back, or write where it is now as the method's name in tuner.json and "
                "recipe.yaml of the run.",
            ) from error
        raise NotFound(
            f"The run was trained with the method {info.name!r} of {info.distribution} "
            f"{info.version}, which is not here.",
            f"Install it: pip install {info.distribution}=={info.version}",
        ) from error


def _source(name: str) -> tuple[str, str]:
    """The installed distribution of a method and its version; both empty for a file."""
    if name in registry.TABLES["methods"]:
        return "gistcli", __version__
    return registry.distribution("methods", name)


def _other_version(info: MethodInfo) -> str:
    """A sentence about the version at hand, where it is not the recorded one."""
    name, version = _source(info.name)
    if (name, version) == (info.distribution, info.version):
        return ""
    was = f"{info.distribution} {info.version}".strip() or "a file"
    return f" The run was trained with {was}; here is {f'{name} {version}'.strip() or 'a file'}."
