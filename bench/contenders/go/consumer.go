package main

import (
	"context"
	"log"
)

// Consumer reads the topic into the hub.
type Consumer interface {
	// Run returns when ctx ends, or when the consumer cannot go on.
	Run(ctx context.Context) error
	// Ready is true once a record that is produced from now on will be read.
	Ready(ctx context.Context) bool
}

type source struct {
	bootstrap, topic, group string
}

func deliver(hub *Hub, value []byte) {
	deviceID, message, err := compose(value)
	if err != nil {
		log.Printf("skipped a record: %v", err)
		return
	}
	hub.SendToDevice(deviceID, message)
}
