// A device: logs the messages it receives, streams the microphone while its button is pressed, and reconnects whatever
// ends its connection. ESP-IDF 5.1 or later.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cJSON.h"
#include "device.h"
#include "esp_crt_bundle.h"
#include "esp_event.h"
#include "esp_log.h"
#include "esp_netif.h"
#include "esp_random.h"
#include "esp_websocket_client.h"
#include "freertos/task.h"
#include "nvs.h"
#include "nvs_flash.h"
#include "protocol_examples_common.h"
#include "reconnect.h"

// The longest message that this device accepts; it skips longer ones. The gateway sends each message in one frame, of up
// to 1 MiB.
#define MESSAGE_MAX 8192
#define CURSOR_MAX 64

static const char *TAG = "device";
QueueHandle_t events;
static esp_websocket_client_handle_t client;
static nvs_handle_t storage;
static char token[2048], cursor[CURSOR_MAX], acknowledged[CURSOR_MAX];
static uint32_t come_back_ms; // the delay that a draining gateway has asked for
static TickType_t opened;     // when the last connection was accepted

// Runs in the client's own task, which answers pings and ends a connection whose network is dead.
static void on_websocket(void *arg, esp_event_base_t base, int32_t id, void *event_data)
{
    static int why;
    static char buffer[MESSAGE_MAX + 1];
    const esp_websocket_event_data_t *data = event_data;
    event_t event = {0};
    switch (id) {
    case WEBSOCKET_EVENT_BEFORE_CONNECT:
        why = 1006;
        break;
    case WEBSOCKET_EVENT_CONNECTED:
        event.kind = CONNECTED;
        xQueueSend(events, &event, portMAX_DELAY);
        break;
    case WEBSOCKET_EVENT_ERROR:
        if (data->error_handle.esp_ws_handshake_status_code >= 400) {
            why = data->error_handle.esp_ws_handshake_status_code;
        }
        break;
    case WEBSOCKET_EVENT_DATA:
        if (data->op_code == 0x8 && data->data_len >= 2) {
            why = (uint8_t)data->data_ptr[0] << 8 | (uint8_t)data->data_ptr[1];
        } else if (data->op_code == 0x1 && data->payload_len <= MESSAGE_MAX) {
            // A message longer than the client's buffer arrives in pieces.
            memcpy(buffer + data->payload_offset, data->data_ptr, data->data_len);
            if (data->payload_offset + data->data_len == data->payload_len) {
                buffer[data->payload_len] = 0;
                event.kind = MESSAGE;
                event.data = strdup(buffer);
                xQueueSend(events, &event, portMAX_DELAY);
            }
        }
        break;
    case WEBSOCKET_EVENT_FINISH: // once for each connection, however it ended
        event.kind = ENDED;
        event.why = why;
        xQueueSend(events, &event, portMAX_DELAY);
        break;
    }
}

// NVS writes atomically and levels its wear. A device with many messages should save less often; after a crash it then
// gets those since the last save again.
static void save(const char *newest)
{
    snprintf(cursor, sizeof cursor, "%s", newest);
    if (nvs_set_str(storage, "cursor", cursor) != ESP_OK || nvs_commit(storage) != ESP_OK) {
        ESP_LOGW(TAG, "cursor not saved");
    }
}

static void handle(const cJSON *message)
{
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItem(message, "type"));
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(message, "text"));
    const char *newest = cJSON_GetStringValue(cJSON_GetObjectItem(message, "cursor"));
    if (type == NULL) {
        return;
    }
    if (strcmp(type, "transcription") == 0) {
        if (cJSON_IsFalse(cJSON_GetObjectItem(message, "success"))) {
            ESP_LOGW(TAG, "failed: %s", cJSON_GetStringValue(cJSON_GetObjectItem(message, "error")));
        } else {
            ESP_LOGI(TAG, "heard: %s", text ? text : "");
        }
    } else if (strcmp(type, "gap") == 0) {
        ESP_LOGW(TAG, "missed: %d", (int)cJSON_GetNumberValue(cJSON_GetObjectItem(message, "missed")));
    } else if (strcmp(type, "reconnect") == 0) {
        come_back_ms = (uint32_t)cJSON_GetNumberValue(cJSON_GetObjectItem(message, "after_ms"));
    } // ignore other types: newer gateways may send some
    if (newest != NULL) {
        save(newest); // after processing: the other order would lose the message in a crash
    }
}

static void acknowledge(void)
{
    char ack[CURSOR_MAX + 32]; // letters, digits, - and _: nothing to escape
    int length = snprintf(ack, sizeof ack, "{\"type\":\"ack\",\"cursor\":\"%s\"}", cursor);
    if (strcmp(cursor, acknowledged) != 0
        && esp_websocket_client_send_text(client, ack, length, pdMS_TO_TICKS(1000)) > 0) {
        strcpy(acknowledged, cursor);
    }
}

// One connection from its handshake to its end. Returns why it ended.
static int talk(void)
{
    static char url[256], headers[sizeof token + 32];
    // cursors=1: this device uses cursors and has none yet. The gateway sends everything that it keeps for the device.
    snprintf(url, sizeof url, WS_URL "?%s%s", cursor[0] ? "after=" : "cursors=1", cursor);
    snprintf(headers, sizeof headers, "Authorization: Bearer %s\r\n", token);
    const esp_websocket_client_config_t config = {
        .uri = url,
        .headers = headers,
        .crt_bundle_attach = esp_crt_bundle_attach,
        .disable_auto_reconnect = true, // its interval is fixed
        .ping_interval_sec = 30, // after the last data; so a dead network is detected 75 s after it
        .pingpong_timeout_sec = 45,
        .buffer_size = 4096,
    };
    bool connected = false;
    client = esp_websocket_client_init(&config);
    ESP_ERROR_CHECK(esp_websocket_register_events(client, WEBSOCKET_EVENT_ANY, on_websocket, NULL));
    ESP_ERROR_CHECK(esp_websocket_client_start(client));
    for (TickType_t last = xTaskGetTickCount();;) {
        event_t event = {.kind = AUDIO};
        xQueueReceive(events, &event, pdMS_TO_TICKS(1000));
        if (event.kind == ENDED) {
            esp_websocket_client_destroy(client);
            return event.why;
        } else if (event.kind == CONNECTED) {
            ESP_LOGI(TAG, "connected");
            connected = true;
            opened = xTaskGetTickCount();
            acknowledged[0] = 0;
        } else if (event.kind == MESSAGE && event.data != NULL) {
            cJSON *message = cJSON_Parse(event.data);
            handle(message);
            cJSON_Delete(message);
        } else if (event.kind == AUDIO && event.data != NULL && connected) {
            esp_websocket_client_send_bin(client, event.data, event.length, pdMS_TO_TICKS(1000));
        } else if (event.kind == AUDIO_END && connected) { // ends the utterance now, not after 0.8 s of silence
            static const char end[] = "{\"type\":\"audio_end\"}";
            esp_websocket_client_send_text(client, end, sizeof end - 1, pdMS_TO_TICKS(1000));
        }
        free(event.data);
        // At most once a second. A cursor covers all messages before it. It is saved first, because the gateway then
        // deletes those messages.
        if (connected && xTaskGetTickCount() - last >= pdMS_TO_TICKS(1000)) {
            last = xTaskGetTickCount();
            acknowledge();
        }
    }
}

void app_main(void)
{
    size_t size = sizeof cursor;
    ESP_ERROR_CHECK(nvs_flash_init());
    ESP_ERROR_CHECK(nvs_open("device", NVS_READWRITE, &storage));
    if (nvs_get_str(storage, "cursor", cursor, &size) != ESP_OK) {
        cursor[0] = 0;
    }
    ESP_ERROR_CHECK(esp_netif_init());
    ESP_ERROR_CHECK(esp_event_loop_create_default());
    ESP_ERROR_CHECK(example_connect()); // the Wi-Fi of menuconfig
    events = xQueueCreate(32, sizeof(event_t));
    start_microphone();
    for (unsigned attempt = 0;; attempt++) {
        come_back_ms = 0;
        opened = 0;
        int why = token[0] ? 0 : fetch_token(token, sizeof token);
        if (why == 0) {
            why = talk();
            if (why == 401 || why == 4401) {
                token[0] = 0; // fetch a new one, after the wait: when a key is removed, a whole fleet needs new tokens
            } else if (why == 400 && cursor[0]) {
                // Most likely the cursor belongs to another device or mailbox; the client hides the body, which would
                // say so. Without a cursor, some messages may arrive a second time.
                save("");
                why = 1006;
            }
        } else if (why == 401) {
            why = 404; // wrong credentials: an early retry cannot succeed
        }
        // Only a connection that lasted resets the backoff, not one that is accepted and closed at once.
        if (opened && xTaskGetTickCount() - opened > pdMS_TO_TICKS(STABLE_MS)) {
            attempt = 0;
        }
        uint32_t pause_ms = wait_ms(why, attempt, come_back_ms, esp_random());
        ESP_LOGI(TAG, "ended: %d, again in %u ms", why, (unsigned)pause_ms);
        vTaskDelay(pdMS_TO_TICKS(pause_ms));
    }
}
