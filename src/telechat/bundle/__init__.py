"""Folders that install and run telechat on a machine without a network."""

from telechat.bundle.make import BundleSettings, make_bundle
from telechat.bundle.manifest import Findings, verify

__all__ = ["BundleSettings", "Findings", "make_bundle", "verify"]
