package main

import (
	"bytes"
	"encoding/json"
	"net/url"

	"github.com/twmb/franz-go/pkg/kgo"
)

// frameKind is what a text message of the server is to a device.
type frameKind uint8

const (
	publication frameKind = iota
	welcome               // it lets the device in
	heartbeat
	unexpected
)

// dialect is how a server differs from others in the eyes of a device and of a publisher.
type dialect struct {
	target  func(token string) string                // of the request for an upgrade
	headers func(deviceID string) []kgo.RecordHeader // of each record for the device
	prefix  func(deviceID string) []byte             // that each message for the device has
	kind    func(payload []byte) frameKind
	// membership is the claims of a token that put a device in the group of all, and groupHeaders and groupPrefix are
	// what a record for that group and its messages have.
	membership   string
	groupHeaders []kgo.RecordHeader
	groupPrefix  []byte
	// welcomes is true for a server that verifies the token after the upgrade: the device is in with its welcome.
	welcomes bool
}

const (
	groupName  = "everyone"
	groupNamed = `"device_id":"` + groupName + `"` // which the gateways pass on from a record with "to"
)

var dialects = map[string]dialect{"gateway": gatewayDialect, "centrifugo": centrifugoDialect}

var gatewayDialect = dialect{
	target:  func(token string) string { return "/ws?token=" + token },
	headers: func(string) []kgo.RecordHeader { return nil },
	prefix:  func(string) []byte { return nil },
	kind:    func([]byte) frameKind { return publication },

	membership: `,"groups":["` + groupName + `"]`,
}

// centrifugoDialect is that of unidirectional WebSocket: https://centrifugal.dev/docs/transports/uni_websocket
var centrifugoDialect = dialect{
	target: func(token string) string {
		request, _ := json.Marshal(map[string]string{"token": token})
		return "/ws?cf_connect=" + url.QueryEscape(string(request))
	},
	headers: func(deviceID string) []kgo.RecordHeader {
		return []kgo.RecordHeader{{Key: "centrifugo-channels", Value: []byte(centrifugoChannel(deviceID))}}
	},
	prefix: func(deviceID string) []byte {
		return []byte(`{"channel":"` + centrifugoChannel(deviceID) + `","pub":{"data":{`)
	},
	kind:     centrifugoKind,
	welcomes: true,

	membership:   `,"channels":["` + groupName + `"]`,
	groupHeaders: []kgo.RecordHeader{{Key: "centrifugo-channels", Value: []byte(groupName)}},
	groupPrefix:  []byte(`{"channel":"` + groupName + `","pub":{"data":{`),
}

// centrifugoChannel is the personal channel of the user that a token names.
func centrifugoChannel(deviceID string) string { return "#" + deviceID }

func centrifugoKind(payload []byte) frameKind {
	switch {
	case bytes.HasPrefix(payload, []byte(`{"channel":`)):
		return publication
	case bytes.HasPrefix(payload, []byte(`{"connect":{`)):
		return welcome
	case bytes.Equal(payload, []byte(`{}`)):
		return heartbeat
	}
	return unexpected
}
