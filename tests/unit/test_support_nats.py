"""The NATS helper itself: what it stores survives kill -9 on the same port."""

import nats

from tests.support.nats import NatsServer


async def test_kill_and_restart_keeps_port_and_store(nats_server: NatsServer) -> None:
    url = nats_server.url
    nc = await nats.connect(url)
    js = nc.jetstream()
    await js.add_stream(name="T", subjects=["t"])
    await js.publish("t", b"one")
    await nc.close()
    nats_server.kill()
    nats_server.start()
    assert nats_server.url == url
    nc = await nats.connect(url)
    assert (await nc.jetstream().stream_info("T")).state.messages == 1
    await nc.close()
