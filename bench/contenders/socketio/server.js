// A Socket.IO server with the Redis streams adapter, for bench/roaming.py: one socket for each device.
//
// The device is a room, as the documentation recommends for users ("How to disconnect a specific client"). A newcomer
// joins it and disconnects all others in it, on every server. With --acknowledged it first asks every server to
// disconnect the device's sockets and waits for the answers (the same page, "With acknowledgement"); it is refused if
// one does not answer.

import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { createAdapter } from "@socket.io/redis-streams-adapter";
import jwt from "jsonwebtoken";
import { createClient } from "redis";
import { Server } from "socket.io";

const { values: options } = parseArgs({
  options: { port: { type: "string" }, redis: { type: "string" }, acknowledged: { type: "boolean" } },
});
const secret = process.env.COCOA_JWT_SECRET;
const DISCONNECT = "disconnect device";

const redis = createClient({ url: options.redis });
redis.on("error", (error) => console.error(`redis: ${error.message}`));
await redis.connect();

const server = createServer(answer);
const io = new Server(server, { transports: ["websocket"], adapter: createAdapter(redis) });

function answer(request, response) {
  if (request.method !== "POST") {
    response.end();
    return;
  }
  let body = "";
  request.on("data", (part) => (body += part));
  request.on("end", () => {
    const { device, message } = JSON.parse(body);
    io.to(device).emit("message", message);
    response.statusCode = 202;
    response.end();
  });
}

function disconnectHere(device) {
  io.local.in(device).disconnectSockets(true);
}

io.on(DISCONNECT, (device, done) => {
  disconnectHere(device);
  done();
});

io.use(async (socket, next) => {
  try {
    const device = jwt.verify(socket.handshake.auth.token, secret, { algorithms: ["HS256"] }).device_id;
    socket.data.device = device;
    if (options.acknowledged) {
      disconnectHere(device);
      await io.serverSideEmitWithAck(DISCONNECT, device);
    }
    next();
  } catch (error) {
    next(error);
  }
});

io.on("connection", (socket) => {
  socket.join(socket.data.device);
  socket.to(socket.data.device).disconnectSockets(true);
});

server.listen(Number(options.port), "127.0.0.1");
process.on("SIGTERM", () => process.exit(0));
