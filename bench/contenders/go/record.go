package main

import (
	"bytes"
	"encoding/json"
	"errors"
)

const head = `{"type":"transcription",`

var errNoDevice = errors.New("record names no device")

// compose returns the device of a record, and the message for it: the record's own bytes made compact, after the type.
func compose(value []byte) (deviceID string, message []byte, err error) {
	var record struct {
		DeviceID string          `json:"device_id"`
		Type     json.RawMessage `json:"type"`
	}
	if err := json.Unmarshal(value, &record); err != nil {
		return "", nil, err
	}
	if record.DeviceID == "" {
		return "", nil, errNoDevice
	}
	if record.Type != nil {
		if value, err = withoutType(value); err != nil {
			return "", nil, err
		}
	}
	var compact bytes.Buffer
	compact.Grow(len(value))
	if err := json.Compact(&compact, value); err != nil {
		return "", nil, err
	}
	message = make([]byte, 0, len(head)+compact.Len())
	message = append(message, head...)
	return record.DeviceID, append(message, compact.Bytes()[1:]...), nil
}

// withoutType is the rare way, and loses the order of the fields.
func withoutType(value []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		return nil, err
	}
	delete(fields, "type")
	return json.Marshal(fields)
}
