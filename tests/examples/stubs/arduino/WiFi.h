#pragma once
#include "Arduino.h"
enum wl_status_t { WL_IDLE_STATUS, WL_CONNECTED = 3 };
struct WiFiClass {
    wl_status_t begin(const char *name, const char *password);
    wl_status_t status();
};
extern WiFiClass WiFi;
