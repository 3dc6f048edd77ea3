#pragma once
#include "freertos/FreeRTOS.h"
typedef struct tskTaskControlBlock *TaskHandle_t;
BaseType_t xTaskCreate(void (*code)(void *), const char *name, uint32_t stack, void *arg, UBaseType_t priority,
                       TaskHandle_t *created);
void vTaskDelay(TickType_t ticks);
TickType_t xTaskGetTickCount(void);
