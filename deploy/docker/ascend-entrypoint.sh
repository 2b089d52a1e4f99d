#!/bin/bash
# Set what CANN and the driver need, then become the command.
driver=/usr/local/Ascend/driver/lib64
export LD_LIBRARY_PATH="$driver:$driver/common:$driver/driver:$LD_LIBRARY_PATH"
for file in /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/nnal/atb/set_env.sh; do
    if [ -f "$file" ]; then
        source "$file"
    fi
done
exec "$@"
