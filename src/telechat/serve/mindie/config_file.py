"""A MindIE `conf/config.json`, nested or flat, read into what our service is started with.

Keys are looked for by name wherever they stand, because versions of MindIE group them differently and its
documents list them without groups. Knows MindIE's keys and defaults; nothing of sockets or models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from telechat.errors import ConfigError
from telechat.registry import nearest
from telechat.serve.mindie.settings import DEFAULT_MAX_ITER_TIMES

logger = logging.getLogger(__name__)

ADDRESS_VARIABLE = "MIES_CONTAINER_IP"
_GIB = 1 << 30
# Groups whose members are keys; a list of one such is a group too.
_LISTED_GROUPS = ("ModelConfig", "ModelParam")


@dataclass(frozen=True)
class Key:
    """A key that we obey.

    Attributes:
        kind: type of its value.
        low, high: range of a number.
        default: MindIE's, where the file is silent; None leaves the choice to us.
    """

    kind: type[Any]
    low: int | None = None
    high: int | None = None
    default: Any = None


_PORT = {"low": 1, "high": 65535}
_INT32 = 2**31 - 1
KEYS: Mapping[str, Key] = {
    "ipAddress": Key(str, default="127.0.0.1"),
    "managementIpAddress": Key(str, default="127.0.0.2"),
    "port": Key(int, **_PORT, default=1025),
    "managementPort": Key(int, **_PORT, default=1026),
    "metricsPort": Key(int, **_PORT),
    "allowAllZeroIpListening": Key(bool, default=False),
    "maxLinkNum": Key(int, 1, _INT32),
    "httpsEnabled": Key(bool, default=False),
    "tlsCert": Key(str),
    "tlsPk": Key(str),
    "tlsCertPath": Key(str),
    "tlsPkPath": Key(str),
    "e2eTimeout": Key(int, 1, 65535),
    "modelInstanceNumber": Key(int, 1, 1024, default=1),
    "npuDeviceIds": Key(list),
    "maxSeqLen": Key(int, 1, _INT32),
    "maxInputTokenLen": Key(int, 1, _INT32),
    "modelName": Key(str),
    "modelWeightPath": Key(str),
    "worldSize": Key(int, 1, 1024),
    "npuMemSize": Key(int, -1, 1 << 20, default=-1),
    "cacheBlockSize": Key(int, 1, 1 << 20),
    "maxPrefillTokens": Key(int, 1, _INT32),
    "maxBatchSize": Key(int, 1, _INT32),
    "maxIterTimes": Key(int, 1, _INT32, default=DEFAULT_MAX_ITER_TIMES),
}
# Known keys with values at which ignoring them changes nothing for a client.
_IGNORED: Mapping[str, tuple[Any, ...] | None] = {
    **dict.fromkeys(
        (
            "Version",
            "LogConfig",
            "logLevel",
            "logFileSize",
            "logFileNum",
            "logPath",
            "inferMode",
            "openAiSupport",
            "tokenTimeout",
            "backendName",
            "backendType",
            "tokenizerProcessNumber",
            "modelInstanceType",
            "cpuMemSize",
            "trustRemoteCode",
            "templateType",
            "templateName",
            "maxPrefillBatchSize",
            "prefillTimeMsPerReq",
            "prefillPolicyType",
            "decodeTimeMsPerReq",
            "decodePolicyType",
            "maxPreemptCount",
            "supportSelectBatch",
            "maxQueueDelayMicroseconds",
            "multiNodesInferPort",
        )
    ),
    "fullTextEnabled": (False,),
    "multiNodesInferEnabled": (False,),
    "truncation": (False, 0),
}
_IGNORED_BEGINNINGS = ("interCommTLS", "interCommTls", "interCommPk", "interNodeTLS", "interNodeTls")
_IGNORED_TLS = ("tlsCaPath", "tlsCaFile", "tlsPkPwd", "tlsCrl", "tlsCrlPath", "tlsCrlFiles", "kmcKsfMaster")


@dataclass(frozen=True, kw_only=True)
class MindieConfig:
    """What a configuration describes.

    Attributes:
        model: folder of weights, None where the file names none.
        served_model_name: the model's name for clients.
        host, port: where requests are answered.
        management_host, management_port: where the service is watched and stopped; port None: nowhere else.
        metrics_port: where `/metrics` is read besides; None: nowhere else.
        devices: numbers joined by commas, of all instances; None leaves the choice to the engine.
        tp: devices of an instance; None where the file is silent.
        replicas: instances.
        cache_bytes: memory of the cache of each device; None lets the engine decide.
        tls_cert, tls_key: PEM files; None without HTTPS.
        unknown: keys that are none of MindIE's, with the place where they stand.
        without_effect: MindIE's keys that change nothing here.
    """

    model: Path | None = None
    served_model_name: str | None = None
    host: str
    port: int
    management_host: str
    management_port: int | None
    metrics_port: int | None = None
    devices: str | None = None
    tp: int | None = None
    replicas: int = 1
    max_model_len: int | None = None
    max_prompt_tokens: int | None = None
    cache_bytes: int | None = None
    block_size: int | None = None
    max_batch_tokens: int | None = None
    max_batch_size: int | None = None
    max_iter_times: int
    max_pending_requests: int | None = None
    request_seconds: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    unknown: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()


@dataclass
class _Found:
    """The keys of a file, sorted."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)


def read_mindie_config(path: Path, environment: Mapping[str, str]) -> MindieConfig:
    """Read a configuration; unknown keys and those without effect are logged.

    Args:
        environment: where MIES_CONTAINER_IP may name the address instead.

    Raises:
        ConfigError: no such file, no JSON object, a value of the wrong type or out of range, or several that
            contradict one another.
    """
    found = _Found()
    _collect(_load(path), "", found)
    config = _interpret(path, found, environment)
    if config.unknown:
        logger.warning("%s: unknown keys, not used: %s", path, "; ".join(config.unknown))
    if config.without_effect:
        logger.info("%s: without effect here: %s", path, ", ".join(config.without_effect))
    return config


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Cannot read {path}: it is not UTF-8 text.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {error.lineno} is not JSON: {error.msg}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object.", hint="Give MindIE's conf/config.json.")
    return value


def _collect(group: Mapping[str, Any], where: str, found: _Found) -> None:
    for name, value in group.items():
        place = f"{where}{name}"
        if isinstance(value, dict):
            _collect(value, f"{place}.", found)
        elif name in _LISTED_GROUPS and isinstance(value, list):
            if len(value) != 1 or not isinstance(value[0], dict):
                raise ConfigError(
                    f"{place} has {len(value)} entries; one service serves one model.",
                    hint="Start a service for each model.",
                )
            _collect(value[0], f"{place}.", found)
        elif name in KEYS:
            if name in found.values and found.values[name] != value:
                raise ConfigError(
                    f"{name} stands twice with different values: {found.places[name]} and {place}."
                )
            found.values[name], found.places[name] = value, place
        elif _is_ignored(name):
            harmless = _IGNORED.get(name)
            if harmless is not None and value not in harmless:
                logger.warning("%s is %s, which this service does not have", place, json.dumps(value))
            found.without_effect.append(place)
        else:
            guess = nearest(name, list(KEYS))
            found.unknown.append(f"{place} (did you mean {guess}?)" if guess else place)


def _is_ignored(name: str) -> bool:
    return name in _IGNORED or name in _IGNORED_TLS or name.startswith(_IGNORED_BEGINNINGS)


def _value(found: _Found, name: str) -> Any:
    """The checked value of a key, or its default."""
    key = KEYS[name]
    value = found.values.get(name)
    if value is None:
        return key.default
    place = found.places[name]
    if not isinstance(value, key.kind) or isinstance(value, bool) != (key.kind is bool):
        kind = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}[key.kind]
        raise ConfigError(f"{place} is {json.dumps(value)}; it must be {kind}.")
    if key.low is not None and key.high is not None and not key.low <= value <= key.high:
        raise ConfigError(f"{place} is {value}; it must be {key.low} to {key.high}.")
    if key.kind is str and not value:
        return key.default
    return value


def _interpret(path: Path, found: _Found, environment: Mapping[str, str]) -> MindieConfig:
    value = {name: _value(found, name) for name in KEYS}
    instances = _instances(value)
    _check_lengths(value)
    host = environment.get(ADDRESS_VARIABLE) or value["ipAddress"]
    if host == "0.0.0.0" and not value["allowAllZeroIpListening"]:
        raise ConfigError(
            "ipAddress is 0.0.0.0, which every machine can reach, and allowAllZeroIpListening is not true.",
            hint="Set it to true, or name the address of one network.",
        )
    cert, key = _tls_files(path, value) if value["httpsEnabled"] else (None, None)
    memory = value["npuMemSize"]
    if memory == 0:
        raise ConfigError("npuMemSize is 0 GB, which holds no cache.", hint="Use -1 to let it be chosen.")
    model = value["modelWeightPath"]
    return MindieConfig(
        model=None if model is None else _existing(path, model),
        served_model_name=value["modelName"],
        host=host,
        port=value["port"],
        management_host=value["managementIpAddress"],
        management_port=value["managementPort"] if value["managementPort"] != value["port"] else None,
        metrics_port=value["metricsPort"] if value["metricsPort"] != value["port"] else None,
        devices=",".join(str(number) for ids in instances for number in ids) or None,
        tp=value["worldSize"] or (len(instances[0]) if instances else None),
        replicas=value["modelInstanceNumber"],
        max_model_len=value["maxSeqLen"],
        max_prompt_tokens=value["maxInputTokenLen"],
        cache_bytes=None if memory < 0 else memory * _GIB,
        block_size=value["cacheBlockSize"],
        max_batch_tokens=value["maxPrefillTokens"],
        max_batch_size=value["maxBatchSize"],
        max_iter_times=value["maxIterTimes"],
        max_pending_requests=value["maxLinkNum"],
        request_seconds=value["e2eTimeout"],
        tls_cert=cert,
        tls_key=key,
        unknown=tuple(found.unknown),
        without_effect=tuple(found.without_effect),
    )


def _instances(value: Mapping[str, Any]) -> list[list[int]]:
    """Device numbers of each instance; empty where the file is silent."""
    given = value["npuDeviceIds"]
    if given is None:
        return []
    instances = [given] if all(isinstance(number, int) for number in given) else given
    for ids in instances:
        sound = isinstance(ids, list) and all(type(number) is int and number >= 0 for number in ids)
        if not sound or not ids or len(set(ids)) < len(ids):
            raise ConfigError(
                f"npuDeviceIds is {json.dumps(given)}.", hint="List the devices of each instance: [[0, 1]]."
            )
    if len(instances) < value["modelInstanceNumber"]:
        raise ConfigError(
            f"modelInstanceNumber is {value['modelInstanceNumber']}, but npuDeviceIds has "
            f"{len(instances)} lists of devices."
        )
    instances = instances[: value["modelInstanceNumber"]]
    for ids in instances:
        size = value["worldSize"] or len(instances[0])
        if len(ids) != size:
            raise ConfigError(
                f"worldSize is {size}, but npuDeviceIds has an instance of {len(ids)} devices: {ids}.",
                hint="Both must say the same.",
            )
    return instances


def _check_lengths(value: Mapping[str, Any]) -> None:
    prefill, prompt, whole = value["maxPrefillTokens"], value["maxInputTokenLen"], value["maxSeqLen"]
    if prefill is not None and prompt is not None and prefill < prompt:
        raise ConfigError(
            f"maxPrefillTokens is {prefill}, less than maxInputTokenLen, {prompt}.",
            hint="Raise the first or lower the second.",
        )
    if whole is not None and prompt is not None and prompt > whole:
        raise ConfigError(
            f"maxInputTokenLen is {prompt}, more than maxSeqLen, {whole}.",
            hint="The longest prompt and its answer together have maxSeqLen tokens.",
        )


def _tls_files(path: Path, value: Mapping[str, Any]) -> tuple[Path, Path]:
    """Certificate and key; MindIE names folder and file of each apart."""
    found = []
    for folder, name in (("tlsCertPath", "tlsCert"), ("tlsPkPath", "tlsPk")):
        if value[name] is None:
            raise ConfigError(
                f"httpsEnabled is true, but {name} is missing.",
                hint="Name the PEM files with tlsCert and tlsPk, or set httpsEnabled to false.",
            )
        found.append(_existing(path, str(Path(value[folder] or "") / value[name])))
    return found[0], found[1]


def _existing(path: Path, name: str) -> Path:
    """A path of the file: absolute, or from MindIE's folder (which holds `conf`), or from the file's own."""
    given = Path(name).expanduser()
    if given.is_absolute():
        return given
    folder = path.resolve().parent
    tried = [folder.parent / given, folder / given] if folder.name == "conf" else [folder / given]
    return next((place for place in tried if place.exists()), given)
