#pragma once
typedef struct cJSON cJSON;
typedef int cJSON_bool;
cJSON *cJSON_Parse(const char *value);
void cJSON_Delete(cJSON *item);
cJSON *cJSON_GetObjectItem(const cJSON *object, const char *string);
char *cJSON_GetStringValue(const cJSON *item);
double cJSON_GetNumberValue(const cJSON *item);
cJSON_bool cJSON_IsFalse(const cJSON *item);
