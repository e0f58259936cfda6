"""TCP proxies that can be cut and stalled, all on one thread."""

import asyncio
import socket
import struct
import threading


class Link:
    """One proxy from its port on 127.0.0.1 to `target`, a port too, which need not listen yet."""

    def __init__(self, target, port):
        self.target, self.port = target, port
        self.is_cut = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.writers = set()

    async def accept(self, reader, writer):
        self.writers.add(writer)
        try:
            await self.flowing.wait()
            if self.is_cut:
                return
            other_reader, other = await asyncio.open_connection("127.0.0.1", self.target)
            self.writers.add(other)
            for each in (writer, other):
                each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pipes = [asyncio.ensure_future(self.pipe(*ends)) for ends in ((reader, other), (other_reader, writer))]
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            for pipe in pipes:
                pipe.cancel()
            self.close(other)
        except OSError:
            pass
        finally:
            self.close(writer)

    async def pipe(self, reader, writer):
        try:
            while data := await reader.read(65536):
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass

    def close(self, writer):
        self.writers.discard(writer)
        writer.transport.abort()

    def cut(self):
        self.is_cut = True
        for writer in list(self.writers):
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close(writer)

    def restore(self):
        self.is_cut = False
        self.flowing.set()


class Proxies:
    """Makes links and commands them from another thread."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.links = []
        self.servers = []
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def open(self, target):
        """A new link to this port."""

        async def listen():
            link = Link(target, 0)
            server = await asyncio.start_server(link.accept, "127.0.0.1", 0)
            self.servers.append(server)
            link.port = server.sockets[0].getsockname()[1]
            return link

        link = self._do(listen())
        self.links.append(link)
        return link

    def cut(self, links):
        """Resets every connection and each new one."""

        async def apply():
            for link in links:
                link.cut()

        self._do(apply())

    def stall(self, links):
        """Nothing passes and nothing is closed, as where every packet is dropped."""

        async def apply():
            for link in links:
                link.flowing.clear()

        self._do(apply())

    def restore(self, links):
        async def apply():
            for link in links:
                link.restore()

        self._do(apply())

    def stop(self):
        async def close():
            for link in self.links:
                link.restore()
                link.cut()
            for server in self.servers:
                server.close()

        self._do(close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
