#pragma once
#include "Arduino.h"
class JsonVariant {
  public:
    template <typename T> bool is() const;
    template <typename T> T as() const;
};
const char *operator|(const JsonVariant &value, const char *otherwise);
int operator|(const JsonVariant &value, int otherwise);
class JsonDocument {
  public:
    JsonVariant operator[](const char *key);
};
class DeserializationError {
  public:
    explicit operator bool() const;
};
DeserializationError deserializeJson(JsonDocument &document, uint8_t *input, size_t size);
DeserializationError deserializeJson(JsonDocument &document, const String &input);
