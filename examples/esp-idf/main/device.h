#pragma once

#include <stddef.h>

#include "freertos/FreeRTOS.h"
#include "freertos/queue.h"

#define GATEWAY_HOST "192.168.1.10:8080"
#define WS_URL "ws://" GATEWAY_HOST "/ws" // wss:// in production
#define TOKEN_URL "http://" GATEWAY_HOST "/api/v1/auth/token"
#define DEVICE_ID "doll-1"
// In production each device needs its own, in its encrypted NVS: a secret that all images share soon leaks.
#define API_KEY "backend"
#define API_SECRET "secret"

// All tasks and callbacks put events into one queue. Only the main task reads it, and only that task uses the client,
// the cursor and the token, so that nothing needs a lock.
typedef enum { MESSAGE, AUDIO, AUDIO_END, CONNECTED, ENDED } kind_t;

typedef struct {
    kind_t kind;
    char *data; // of MESSAGE and AUDIO; the receiver frees it
    int length;
    int why; // of ENDED: a close code or an HTTP status; 1006: no reason is known
} event_t;

extern QueueHandle_t events;

// Fetches a token into the buffer. Returns 0, the HTTP status of a refusal, or 1006.
int fetch_token(char *token, size_t size);

// Sends the microphone's samples as events of 100 ms each while the button is pressed.
void start_microphone(void);
