package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// fetchToken is for devices that can keep a secret. Others get their tokens from your own backend.
func (d *device) fetchToken() (e end, failed bool) {
	at, err := url.Parse(strings.Replace(address, "ws", "http", 1))
	if err != nil {
		return end{why: 404}, true
	}
	at.Path, at.RawQuery = "/api/v1/auth/token", ""
	body, _ := json.Marshal(map[string]string{"device_id": env("DEVICE_ID", "doll-1")})
	request, err := http.NewRequest("POST", at.String(), bytes.NewReader(body))
	if err != nil {
		return end{why: 404}, true
	}
	request.Header.Set("X-API-Key", apiKey)
	request.Header.Set("X-API-Secret", env("API_SECRET", ""))
	request.Header.Set("Content-Type", "application/json")
	client := http.Client{Timeout: patience}
	response, err := client.Do(request)
	if err != nil {
		return end{why: 1006}, true
	}
	defer response.Body.Close()
	if response.StatusCode != 200 {
		fmt.Println("no token:", response.StatusCode)
		// 401: wrong credentials. 404: the gateway has no credentials configured. An early retry cannot succeed.
		if response.StatusCode == 401 {
			return end{why: 404}, true
		}
		return end{why: response.StatusCode, minimum: retryAfter(response)}, true
	}
	var answer struct {
		Token string `json:"token"`
	}
	if json.NewDecoder(response.Body).Decode(&answer) != nil {
		return end{why: 1006}, true
	}
	d.token = answer.Token
	return end{}, false
}

func retryAfter(response *http.Response) time.Duration {
	seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
	return time.Duration(max(0, seconds)) * time.Second
}

func scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * scale) }

func env(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}

func main() {
	saved, _ := os.ReadFile(cursorFile)
	d := &device{token: env("DEVICE_TOKEN", "")}
	cursor := strings.TrimSpace(string(saved))
	d.cursor.Store(&cursor)
	if len(os.Args) > 1 {
		var err error
		if d.recording, err = os.ReadFile(os.Args[1]); err != nil {
			log.Fatal(err)
		}
	}
	d.run()
}
