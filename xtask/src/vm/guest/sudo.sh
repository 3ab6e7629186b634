#!/bin/sh
# critest loads profiles with sudo, and a guest has no users but root.
exec "$@"
