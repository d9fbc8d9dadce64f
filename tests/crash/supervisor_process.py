"""A process with a local runtime in it, to be killed: wakes a deployment, says so, and goes on.

python -m tests.crash.supervisor_process HOME DEPLOYMENT_ID [options of the fake server…]
"""

import asyncio
import sys
from pathlib import Path

from tests.runtime_values import open_world


async def main() -> None:
    home, deployment_id, *options = sys.argv[1:]
    world = open_world(Path(home))
    world.launcher.options = options
    runtime = world.runtime()
    asyncio.get_running_loop().create_task(runtime.run())
    wait_ms = 300 if "--start-delay" in options else 10_000
    status = await runtime.wake(deployment_id, wait_ms)
    print(status.state, flush=True)
    await asyncio.sleep(600)


asyncio.run(main())
