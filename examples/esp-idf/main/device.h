#pragma once

#include <stddef.h>

#include "freertos/FreeRTOS.h"
#include "freertos/queue.h"

#define GATEWAY_HOST "192.168.1.10:8080"
#define WS_URL "ws://" GATEWAY_HOST "/ws" // wss:// in production
#define TOKEN_URL "http://" GATEWAY_HOST "/api/v1/auth/token"
#define DEVICE_ID "doll-1"
// Of this device alone, from its encrypted NVS in production: one secret in all images is no secret for long.
#define API_KEY "backend"
#define API_SECRET "a secret"

// All tasks and callbacks put what happens into one queue, and only the main task reads it: it alone touches the
// client, the cursor and the token, so that nothing needs a lock.
typedef enum { MESSAGE, AUDIO, AUDIO_END, CONNECTED, ENDED } kind_t;

typedef struct {
    kind_t kind;
    char *data; // of MESSAGE and AUDIO, to be freed
    int length;
    int why; // of ENDED: a close code or an HTTP status. 1006: nobody said why
} event_t;

extern QueueHandle_t events;

// Fetch a token into the buffer. Returns 0, or the HTTP status, or 1006.
int fetch_token(char *token, size_t size);

// Have the microphone's samples arrive as events, 100 ms each, as long as the button is pressed.
void start_microphone(void);
