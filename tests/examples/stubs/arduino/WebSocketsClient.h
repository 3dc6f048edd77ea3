#pragma once
#include <functional>
#include "Arduino.h"
typedef enum { WStype_ERROR, WStype_DISCONNECTED, WStype_CONNECTED, WStype_TEXT, WStype_BIN } WStype_t;
class WebSocketsClient {
  public:
    typedef std::function<void(WStype_t type, uint8_t *payload, size_t length)> WebSocketClientEvent;
    void begin(const char *host, uint16_t port, const char *url = "/", const char *protocol = "arduino");
    void loop();
    void onEvent(WebSocketClientEvent event);
    bool sendTXT(const char *payload, size_t length = 0);
    bool sendBIN(const uint8_t *payload, size_t length);
    void setAuthorization(const char *auth);
    void setExtraHeaders(const char *headers = nullptr);
    void setReconnectInterval(unsigned long time);
    void enableHeartbeat(uint32_t pingInterval, uint32_t pongTimeout, uint8_t disconnectTimeoutCount);
};
