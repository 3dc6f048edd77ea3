// When to try again. Pure, so that a test on any machine can compile and run it.
#pragma once

#include <stdint.h>

#define BASE_MS 1000u
#define CAP_MS 60000u
#define SLOW_LOW_MS 60000u
#define SLOW_TOP_MS 300000u
#define STABLE_MS 60000u
// The WebSocket libraries of ESP-IDF 5 and Arduino hide the header Retry-After: this is what a gateway says by default.
#define RETRY_AFTER_MS 5000u

// Milliseconds until the next attempt. Full jitter: a fleet that lost one server must not return in one moment. What
// the gateway asks for is a minimum, and the jitter comes on top: all devices were told the same number.
static inline uint32_t wait_ms(int why, unsigned attempt, uint32_t minimum_ms, uint32_t random)
{
    uint32_t low = 0, high = attempt < 6 ? BASE_MS << attempt : CAP_MS;
    switch (why) {
    case 403: case 404: case 426: case 1002: case 1007: case 4409:
        // Trying again soon will not help: the firmware, the other holder of the id or the gateway must change first.
        // The device keeps trying all the same, for nobody else would ever bring it back.
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
