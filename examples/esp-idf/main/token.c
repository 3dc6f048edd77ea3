#include <stdio.h>
#include <string.h>

#include "cJSON.h"
#include "device.h"
#include "esp_crt_bundle.h"
#include "esp_http_client.h"

int fetch_token(char *token, size_t size)
{
    static const char body[] = "{\"device_id\":\"" DEVICE_ID "\"}";
    static char answer[3072];
    const esp_http_client_config_t config = {
        .url = TOKEN_URL,
        .method = HTTP_METHOD_POST,
        .timeout_ms = 10000,
        .crt_bundle_attach = esp_crt_bundle_attach,
    };
    esp_http_client_handle_t http = esp_http_client_init(&config);
    int why = 1006;
    esp_http_client_set_header(http, "X-API-Key", API_KEY);
    esp_http_client_set_header(http, "X-API-Secret", API_SECRET);
    esp_http_client_set_header(http, "Content-Type", "application/json");
    if (esp_http_client_open(http, sizeof body - 1) == ESP_OK
        && esp_http_client_write(http, body, sizeof body - 1) == sizeof body - 1
        && esp_http_client_fetch_headers(http) >= 0) {
        int length = esp_http_client_read_response(http, answer, sizeof answer - 1);
        answer[length > 0 ? length : 0] = 0;
        why = esp_http_client_get_status_code(http);
        cJSON *json = cJSON_Parse(answer);
        const char *given = cJSON_GetStringValue(cJSON_GetObjectItem(json, "token"));
        if (why == 200 && given != NULL && strlen(given) < size) {
            strcpy(token, given);
            why = 0;
        } else if (why == 200) {
            why = 1006;
        }
        cJSON_Delete(json);
    }
    esp_http_client_cleanup(http);
    return why;
}
