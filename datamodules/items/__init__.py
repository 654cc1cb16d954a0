"""How an item is written, one file for each form. The names exported here are the names used in configs."""

from datamodules.items.title import Title
from datamodules.items.token import Token

__all__ = ["Title", "Token"]
