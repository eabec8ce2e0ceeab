"""How an answer leaves the server."""

import asyncio

from sfumato.deploy.server.http import _AtOnce


class Transport:
    def __init__(self):
        self.calls = []

    def write(self, data):
        self.calls.append(data)

    def close(self):
        self.calls.append("closed")

    def is_closing(self):
        return "closed" in self.calls


def test_what_is_written_in_one_turn_of_the_loop_is_sent_at_once():
    async def work():
        real = Transport()
        transport = _AtOnce(real, asyncio.get_running_loop())
        transport.write(b"head ")
        transport.write(b"body")
        assert real.calls == []
        await asyncio.sleep(0)
        assert real.calls == [b"head body"]
        transport.write(b"next")
        await asyncio.sleep(0)
        assert real.calls[1:] == [b"next"]

    asyncio.run(work())


def test_nothing_is_lost_or_sent_late_where_the_connection_is_closed():
    async def work():
        real = Transport()
        transport = _AtOnce(real, asyncio.get_running_loop())
        transport.write(b"last words")
        assert not transport.is_closing()
        transport.close()
        assert real.calls == [b"last words", "closed"]
        assert transport.is_closing()
        await asyncio.sleep(0)
        assert real.calls == [b"last words", "closed"]

    asyncio.run(work())
