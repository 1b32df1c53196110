"""Tornado with fork_processes(), as in its documentation."""

import asyncio
import os

from tornado.httpserver import HTTPServer
from tornado.log import enable_pretty_logging
from tornado.netutil import bind_sockets
from tornado.process import fork_processes
from tornado.web import Application, RequestHandler

from begin import begin


class Answer(RequestHandler):
    def get(self):
        self.write(b"ok\n")


async def serve(sockets):
    HTTPServer(Application([("/", Answer)], log_function=lambda handler: None)).add_sockets(sockets)
    await asyncio.Event().wait()


enable_pretty_logging()
sockets = bind_sockets(int(os.environ["PEERS_PORT"]), "127.0.0.1")
fork_processes(4)
begin()
asyncio.run(serve(sockets))
