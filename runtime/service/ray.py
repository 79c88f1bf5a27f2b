"""Run the application on Ray Serve, as replicas on a cluster behind Ray's proxy.

Each replica is a process with its own sessions and decoders. The bundle's path must be the same on every node. To serve
a new bundle, deploy again, which Ray does replica by replica. Needs the extra `ray`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from embed.spec import InputError
from runtime.config import ServiceConfig

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

NAME = "plaudit"


def deployment(config: ServiceConfig, replicas: int) -> "Application":
    """The application for `ray.serve.run`."""
    from ray import serve

    # A request to reload would reach only one of the replicas.
    config = replace(config, may_reload=False)

    class Replica:
        def __init__(self, config: ServiceConfig) -> None:
            self.config = config

        def __serve_build_asgi_app__(self) -> "FastAPI":
            from runtime.service.app import create_app

            application = create_app(self.config)
            self.service = application.state.service
            return application

        async def check_health(self) -> None:
            await self.service.ready()

    # Ray passes on more than a replica's queue holds, so that the service itself answers the excess with 429.
    deployed = serve.deployment(name=NAME, num_replicas=replicas, max_ongoing_requests=2 * config.max_queue)
    return deployed(serve.ingress()(Replica)).bind(config)


def serve_on_ray(config: ServiceConfig, host: str, port: int, replicas: int) -> None:
    """Deploy on the cluster that RAY_ADDRESS names, or on a new one on this machine, and serve until interrupted."""
    try:
        from ray import serve
    except ImportError as error:
        what = f"Ray Serve cannot be imported ({error.name})"
        raise InputError(f"{what}; run: pip install 'plaudit[cpu,serve,ray]'") from None
    application = deployment(config, replicas)
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(application, name=NAME, route_prefix="/", blocking=True)
    finally:
        serve.shutdown()
