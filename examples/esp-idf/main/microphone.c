#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "driver/gpio.h"
#include "driver/i2s_std.h"
#include "freertos/task.h"

// An INMP441 or a similar microphone, and the button that most boards call BOOT.
#define PIN_CLOCK GPIO_NUM_14
#define PIN_WORD GPIO_NUM_15
#define PIN_DATA GPIO_NUM_32
#define PIN_BUTTON GPIO_NUM_0

#define SAMPLE_RATE 16000
#define PIECE (SAMPLE_RATE / 10) // 100 ms, of signed 16-bit little-endian samples: the gateway's default format

static i2s_chan_handle_t microphone;

static void record(void *arg)
{
    static int16_t samples[PIECE];
    bool speaking = false;
    for (;;) {
        size_t length = 0;
        if (i2s_channel_read(microphone, samples, sizeof samples, &length, portMAX_DELAY) != ESP_OK) {
            continue;
        }
        bool pressed = gpio_get_level(PIN_BUTTON) == 0;
        event_t event = {.kind = pressed ? AUDIO : AUDIO_END, .length = (int)length};
        if (pressed && (event.data = malloc(length)) != NULL) {
            memcpy(event.data, samples, length);
        }
        // A full queue means a slow network: drop audio that would be late. The last event waits for room in the queue.
        if ((pressed || speaking) && xQueueSend(events, &event, pressed ? 0 : portMAX_DELAY) != pdTRUE) {
            free(event.data);
        }
        speaking = pressed;
    }
}

void start_microphone(void)
{
    const gpio_config_t button = {
        .pin_bit_mask = 1ULL << PIN_BUTTON, .mode = GPIO_MODE_INPUT, .pull_up_en = GPIO_PULLUP_ENABLE};
    ESP_ERROR_CHECK(gpio_config(&button));
    i2s_chan_config_t channel = I2S_CHANNEL_DEFAULT_CONFIG(I2S_NUM_AUTO, I2S_ROLE_MASTER);
    ESP_ERROR_CHECK(i2s_new_channel(&channel, NULL, &microphone));
    i2s_std_config_t config = {
        .clk_cfg = I2S_STD_CLK_DEFAULT_CONFIG(SAMPLE_RATE),
        .slot_cfg = I2S_STD_PHILIPS_SLOT_DEFAULT_CONFIG(I2S_DATA_BIT_WIDTH_16BIT, I2S_SLOT_MODE_MONO),
        .gpio_cfg =
            {.mclk = I2S_GPIO_UNUSED, .bclk = PIN_CLOCK, .ws = PIN_WORD, .dout = I2S_GPIO_UNUSED, .din = PIN_DATA},
    };
    ESP_ERROR_CHECK(i2s_channel_init_std_mode(microphone, &config));
    ESP_ERROR_CHECK(i2s_channel_enable(microphone));
    xTaskCreate(record, "microphone", 4096, NULL, 5, NULL);
}
