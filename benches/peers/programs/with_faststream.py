"""FastStream with the supervisor of its command line. It connects to no message broker, so that none has to run."""

from faststream import FastStream

from begin import begin


class Application(FastStream):
    async def _start_broker(self):
        pass


app = Application(on_startup=[begin])
