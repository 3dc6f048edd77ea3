#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <unistd.h>
class String {
  public:
    String(const char *text = "");
    explicit String(int number);
    String(const String &other);
    String &operator=(const String &other);
    unsigned length() const;
    const char *c_str() const;
    bool operator==(const char *other) const;
    bool operator!=(const String &other) const;
};
String operator+(const String &left, const String &right);
String operator+(const String &left, const char *right);
String operator+(const String &left, int right);
String operator+(const char *left, const String &right);
struct Port {
    void begin(unsigned long baud);
    void println(const char *text);
    int printf(const char *format, ...);
};
extern Port Serial;
enum { LOW, HIGH };
enum { INPUT_PULLUP = 5 };
void pinMode(uint8_t pin, uint8_t mode);
int digitalRead(uint8_t pin);
unsigned long millis();
uint32_t esp_random();
