// When to reconnect. This file uses no library, so that a test on any machine can compile and run it.
#pragma once

#include <stdint.h>

#define BASE_MS 1000u
#define CAP_MS 60000u
#define SLOW_LOW_MS 60000u
#define SLOW_TOP_MS 300000u
#define STABLE_MS 60000u
// The WebSocket libraries of ESP-IDF 5 and Arduino hide the header Retry-After. This is the gateway's default.
#define RETRY_AFTER_MS 5000u

// Milliseconds until the next attempt, with full jitter: a fleet that lost its server must not return all at once.
// minimum_ms comes from the gateway, and the jitter comes on top, because every device was given the same number.
static inline uint32_t wait_ms(int why, unsigned attempt, uint32_t minimum_ms, uint32_t random)
{
    uint32_t low = 0, high = attempt < 6 ? BASE_MS << attempt : CAP_MS;
    switch (why) {
    case 400: case 403: case 404: case 426: case 1002: case 1007: case 4409:
        // An early retry cannot succeed: the firmware, the configuration, or another holder of this device id must
        // change first. But never give up: only the device itself can reconnect.
        low = SLOW_LOW_MS;
        high = SLOW_TOP_MS;
        break;
    case 409: case 503:
        if (minimum_ms < RETRY_AFTER_MS) {
            minimum_ms = RETRY_AFTER_MS;
        }
        break;
    }
    return minimum_ms + low + random % (high - low + 1);
}
