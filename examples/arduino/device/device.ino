// A device: prints the messages it receives, streams the microphone while its button is pressed, and reconnects
// whatever ends its connection. ESP32 boards 3.0 or later; the libraries WebSockets (Links2004) 2.7.3 or later and
// ArduinoJson 7.
//
// The WebSockets library ends the connection at a message over 15 KiB. Because this device uses cursors, the gateway
// would send the same message again after each reconnect, until it expires. If your backend sends longer messages,
// raise WEBSOCKETS_MAX_DATA_SIZE in the library's src/WebSockets.h.

#include <ArduinoJson.h>
#include <ESP_I2S.h>
#include <HTTPClient.h>
#include <Preferences.h>
#include <WebSocketsClient.h>
#include <WiFi.h>

#include "reconnect.h"

const char *WIFI_NAME = "home", *WIFI_PASSWORD = "secret";
const char *HOST = "192.168.1.10";
const uint16_t PORT = 8080;
const char *DEVICE_ID = "doll-1";
// In production each device needs its own: a secret that all images share soon leaks.
const char *API_KEY = "backend", *API_SECRET = "secret";
const int PIN_CLOCK = 14, PIN_WORD = 15, PIN_DATA = 32, PIN_BUTTON = 0; // an INMP441, and the button BOOT

WebSocketsClient webSocket;
Preferences storage;
I2SClass microphone;
String token, cursor, acknowledged;
bool waiting = true, connected = false, speaking = false;
uint32_t since = 0, pauseMs = 0;  // of the wait
uint32_t opened = 0, lastAck = 0;
uint32_t comeBack = 0;  // the delay in milliseconds that a draining gateway has asked for
unsigned attempt = 0;

// Called after processing: a crash in between repeats the message, and the other order would lose it. The flash levels
// its wear. A device with many messages should save less often; after a crash it then gets some messages twice.
void save(const String &newest) {
  cursor = newest;
  storage.putString("cursor", cursor);
}

void handle(uint8_t *payload, size_t length) {
  JsonDocument message;
  if (deserializeJson(message, payload, length)) {
    return;
  }
  String type = message["type"] | "";
  if (type == "transcription") {
    bool failed = message["success"].is<bool>() && !message["success"].as<bool>();
    Serial.printf(failed ? "failed: %s\n" : "heard: %s\n", message[failed ? "error" : "text"] | "");
  } else if (type == "gap") {
    Serial.printf("missed: %d\n", message["missed"] | 0);
  } else if (type == "reconnect") {
    comeBack = message["after_ms"] | 0;
  }  // ignore other types: newer gateways may send some
  String newest = message["cursor"] | "";
  if (newest.length() > 0) {
    save(newest);
  }
}

void ended(int why) {
  if (why == 401) {
    token = "";  // fetch a new one, after the wait: when a key is removed, a whole fleet needs new tokens
  } else if (why == 400 && cursor.length() > 0) {
    // Most likely the cursor belongs to another device or mailbox; the library hides the body, which would say so.
    // Without a cursor, some messages may arrive a second time.
    save("");
    why = 1006;
  }
  // Only a connection that lasted resets the backoff, not one that is accepted and closed at once.
  if (connected && millis() - opened > STABLE_MS) {
    attempt = 0;
  }
  pauseMs = wait_ms(why, attempt++, comeBack, esp_random());
  Serial.printf("ended: %d, again in %u ms\n", why, (unsigned)pauseMs);
  comeBack = 0;
  since = millis();
  waiting = true;
  connected = speaking = false;
}

// The library answers pings. It hides the close code, so 1006 stands for every code. The answer to the next attempt
// says what to do: 401 (get a new token) or 409 (another connection has this device id). After 1002 and 1007 only the
// growing delays protect the gateway.
void onEvent(WStype_t type, uint8_t *payload, size_t length) {
  if (type == WStype_CONNECTED) {
    Serial.println("connected");
    connected = true;
    acknowledged = "";
  } else if (type == WStype_TEXT) {  // the gateway sends each message in one frame
    handle(payload, length);
  } else if (type == WStype_DISCONNECTED) {
    const char *status = payload == nullptr ? nullptr : strstr((const char *)payload, "HTTP ");
    ended(status == nullptr ? 1006 : atoi(status + 5));
  }
}

// Returns 0, or the HTTP status, or 1006.
int fetchToken() {
  HTTPClient http;
  http.begin(String("http://") + HOST + ":" + PORT + "/api/v1/auth/token");
  http.addHeader("X-API-Key", API_KEY);
  http.addHeader("X-API-Secret", API_SECRET);
  http.addHeader("Content-Type", "application/json");
  int status = http.POST(String("{\"device_id\":\"") + DEVICE_ID + "\"}");
  if (status != 200) {
    http.end();
    return status <= 0 ? 1006 : status == 401 ? 404 : status;  // wrong credentials: an early retry cannot succeed
  }
  JsonDocument answer;
  deserializeJson(answer, http.getString());
  token = answer["token"] | "";
  http.end();
  return token.length() > 0 ? 0 : 1006;
}

void connectOnce() {
  int why = token.length() > 0 ? 0 : fetchToken();
  if (why != 0) {
    ended(why);
    return;
  }
  // cursors=1: this device uses cursors and has none yet. The gateway sends everything that it keeps for the device.
  String url = cursor.length() > 0 ? "/ws?after=" + cursor : String("/ws?cursors=1");
  webSocket.begin(HOST, PORT, url.c_str(), "");  // in production use beginSslWithCA
  webSocket.setAuthorization(("Bearer " + token).c_str());
  webSocket.setExtraHeaders("");  // the default is "Origin: file://", which firmware does not need
  webSocket.enableHeartbeat(30000, 30000, 2);  // detects a dead network sooner than TCP would
  opened = millis();
  waiting = false;
  webSocket.setReconnectInterval(0);
  webSocket.loop();  // one attempt
  webSocket.setReconnectInterval(0xffffffff);  // no automatic reconnects: their interval is fixed
}

// 100 ms at a time, signed 16-bit little-endian: the gateway's default format.
void speak() {
  static uint8_t samples[3200];
  bool pressed = digitalRead(PIN_BUTTON) == LOW;
  if (pressed) {
    size_t length = microphone.readBytes((char *)samples, sizeof samples);
    webSocket.sendBIN(samples, length);
  } else if (speaking) {
    webSocket.sendTXT("{\"type\":\"audio_end\"}");  // ends the utterance now instead of after 0.8 s of silence
  }
  speaking = pressed;
}

void setup() {
  Serial.begin(115200);
  pinMode(PIN_BUTTON, INPUT_PULLUP);
  microphone.setPins(PIN_CLOCK, PIN_WORD, -1, PIN_DATA);
  microphone.begin(I2S_MODE_STD, 16000, I2S_DATA_BIT_WIDTH_16BIT, I2S_SLOT_MODE_MONO);
  storage.begin("device");
  cursor = storage.getString("cursor", "");
  WiFi.begin(WIFI_NAME, WIFI_PASSWORD);
  webSocket.onEvent(onEvent);
}

void loop() {
  if (waiting) {
    if (millis() - since >= pauseMs && WiFi.status() == WL_CONNECTED) {
      connectOnce();
    }
    return;
  }
  webSocket.loop();
  if (!connected) {
    return;
  }
  speak();
  // At most once a second. A cursor covers all messages before it. It is saved first, because the gateway then deletes
  // those messages. It consists of letters, digits, - and _, so nothing needs escaping.
  if (cursor != acknowledged && millis() - lastAck >= 1000) {
    lastAck = millis();
    acknowledged = cursor;
    webSocket.sendTXT(("{\"type\":\"ack\",\"cursor\":\"" + cursor + "\"}").c_str());
  }
}
