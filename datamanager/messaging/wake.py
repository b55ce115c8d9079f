"""The former name of `datamanager.messaging.notifications`."""

from __future__ import annotations

from datamanager.messaging.notifications import MESSAGE_MAX as MESSAGE_MAX
from datamanager.messaging.notifications import NotificationSocket as WakeSocket
from datamanager.messaging.notifications import notify as ring

__all__ = ["MESSAGE_MAX", "WakeSocket", "ring"]
